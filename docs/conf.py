"""The site: ``sphinx-build -W docs site``."""

import importlib.metadata

project = "salmon"
release = importlib.metadata.version("salmon-saliency")
html_title = f"salmon {release}"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "furo"

myst_heading_anchors = 3
nb_execution_mode = "off"  # the tests run the notebook; its outputs are in it
autodoc_mock_imports = ["transformers"]  # which the extra docs does not bring
autoclass_content = "both"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
napoleon_numpy_docstring = False
