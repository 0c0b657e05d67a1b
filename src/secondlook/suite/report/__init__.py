"""The face of the suite: notebooks executed with papermill, and the static site built from them.

`notebooks.execute` runs a template, `site.build` writes the site, `room.open_page` is what notebook cells talk to.
Nothing here is imported by the machinery, and nothing here needs the network.
"""

from secondlook.suite.imports import spare_grammars

spare_grammars()
