"""A page in the browser that fills holes, generates and translates pictures; needs the extra `app`."""

from fm_ext.app.serve import run

__all__ = ["run"]
