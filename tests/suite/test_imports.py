"""What start-up spares itself."""

import subprocess
import sys

GRAMMARS = """
import sys
from secondlook.suite.imports import spare_grammars
spare_grammars()
import jsonschema
try:
    jsonschema.validate({"a": "1"}, {"properties": {"a": {"type": "number"}}})
except jsonschema.ValidationError:
    print("lark" in sys.modules, "refused")
"""


def test_schemas_are_checked_without_a_grammar():
    done = subprocess.run([sys.executable, "-c", GRAMMARS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False refused"
