"""fm_ext: what flow_matching lacks, in the rooms where its users look for it.

Knowing `flow_matching.path`, look in `fm_ext.path`; and so on for every room. Nothing is imported here, so
`import fm_ext.path` never pulls in accelerate, datasets or torchvision.
"""

__version__ = "0.1.0.dev0"
