"""An mkdocs hook: MathJax comes from the site itself, so that the pages read offline and no other server hears of it.

The files are those of the package django-static-mathjax, which the extra `docs` installs and which needs no Django:
MathJax 3, under the Apache licence 2.0, whose text goes along. 1.6 MB of the site.
"""

from importlib.metadata import distribution

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SCRIPT, FONTS = "es5/tex-chtml.js", "es5/output/chtml/fonts/woff-v2/"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    package = distribution("django-static-mathjax")
    prefix = "mathjax/static/mathjax/"
    for path in package.files or []:
        name = str(path).removeprefix(prefix)
        if name in (SCRIPT, "LICENSE") or name.startswith(FONTS):
            source = str(package.locate_file(path))
            files.append(File.generated(config, f"javascripts/mathjax/{name}", abs_src_path=source))
    if files.get_file_from_path(f"javascripts/mathjax/{SCRIPT}") is None:
        raise FileNotFoundError(f'{package.name} holds no {SCRIPT}; pip install -e ".[docs]"')
    return files
