"""The face of the suite: notebooks executed with papermill, and the static site built from them.

`notebooks.execute` runs a template, `site.build` writes the site, `room.open_page` is what notebook cells talk to.
Nothing here is imported by the machinery, and nothing here needs the network.
"""

import sys

# Where this package is installed, jsonschema (under nbformat) builds a grammar of IRIs from it at import: 1.4 s, for
# notebooks that hold none.
sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]
