"""What answers HTTP: an event loop in front of Django.

    client ─▶ application ─▶ hot: what is asked most and needs no thread, on the loop
                        └──▶ bridge: everything else, by Django on threads

Nothing on the loop ever waits for a server or a client. `hot` calls the functions that Django's
views call and holds no rule of its own; whatever it is not sure of goes to the views, which are
complete and the reference.
"""
