"""Extensions of flow_matching, in modules of the same names: those of `flow_matching.path` are in `fm_ext.path`.

Nothing is imported here, so `import fm_ext.path` does not import accelerate, datasets or torchvision.
"""

__version__ = "0.1.0.dev0"
