"""Settings of Sphinx for the documentation: ``make docs``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # reference_pages

import monolora

project = "monolora"
version = release = monolora.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "reference_pages"]
exclude_patterns = ["**/run.json"]

html_theme = "furo"
html_title = "monolora"
html_copy_source = False
html_show_sphinx = html_show_copyright = False

myst_heading_anchors = 4  # GitHub's anchors, for links to headings

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # attributes as one list, beside those that autodoc finds by itself

# What has no page here stands in signatures and docstrings all the same: types of other libraries, and inner modules.
_OTHERS = (
    "collections.abc|contextlib|datasets|fractions|numpy|os|pathlib|peft|rich|safetensors|sympy|torch|transformers|trl"
)
_INNER = (
    "combine|data.row_formats|explain.(collector|contexts|histograms|unit_statistics)|merge.verify|registration|"
    "shared_prefix|vllm"
)
_UNQUALIFIED = "AdapterFileError|Floats|LLM|LoRARequest|LoraConfig|Number|Purpose|SafetensorError|Spread|check_readable"
nitpick_ignore_regex = [
    ("py:.*", rf"({_OTHERS})\..*"),
    ("py:.*", rf"monolora\.({_INNER})(\..*)?"),
    ("py:.*", rf"({_UNQUALIFIED}|.*\._T|(.*\.)?Row|COUNTS|KEEPERS|REFUSING|COMPLYING|SUPPORTED_VLLM)"),
]
