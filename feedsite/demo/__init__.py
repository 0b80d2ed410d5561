"""`make demo`: servers, API and workers in one terminal, with a small network that came in through
the API.

`show` is the story from start to stop, `children` its processes, `sample` the network, `client` how
it speaks to the API.
"""
