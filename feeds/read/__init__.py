"""Reading a feed: its first page from this process, from Redis or from PostgreSQL, never an
outdated one.

`first_page` reads one, in the right order. `page` is what a page looks like where it is kept.
`pages` are those in Redis, `near_cache` those in the memory of an event loop, `era` says which
Redis counts. `here` is what this process has of them.
"""
