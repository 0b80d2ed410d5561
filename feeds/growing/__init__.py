"""Moving readers from one cell to another: a copy adopted, slots flipped, leftovers tidied."""
