"""What this process has of the cache: what it knows of the era, and the pages that it finds
there.
"""

from feeds.read.era import Trust
from feeds.read.pages import Pages

trust = Trust()
pages = Pages(trust)
