"""The verb `sweep`: searches for better settings with Optuna. It needs the extra `sweep`."""

from mnist_lightning.errors import UserError

try:
    import optuna  # noqa: F401
    import plotly  # noqa: F401
    import sqlalchemy  # noqa: F401
except ImportError as error:
    raise UserError(f"a sweep needs {error.name}: pip install 'mnist-lightning[sweep]'") from error
