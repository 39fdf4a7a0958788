"""A saved model as an HTTP service: typed endpoints, one a family, made from the model's folder.

Needs the extra `serve`: `pip install 'bmm-multitask-learning[serve]'`.
"""

try:
    from .app import create_app, run
except ModuleNotFoundError as error:
    raise ImportError(
        f"serving needs {error.name}, which is not installed; "
        "install the extra: pip install 'bmm-multitask-learning[serve]'"
    ) from error

__all__ = ["create_app", "run"]
