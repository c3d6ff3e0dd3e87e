"""Second Site: open disaster recovery between two of your own sites."""

__version__ = "0.1.0"
