"""How Django writes dates and times for people; `FORMAT_MODULE_PATH` names this package."""
