"""The record of a sweep: Optuna's database of trials, in a file or on a server."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import optuna
from optuna.exceptions import StorageInternalError
from sqlalchemy import make_url
from sqlalchemy.exc import IntegrityError, InternalError, ProgrammingError, SQLAlchemyError

from mnist_lightning.errors import UserError, first_cause, in_a_line
from mnist_lightning.use.sweep.search import PRUNERS

DATABASE_ERRORS = (StorageInternalError, SQLAlchemyError)
FILE = "sqlite:///"  # the start of the URL of a database in a file
POSTGRESQL = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}  # SQLAlchemy's name for the driver


def open_record(url: str, name: str, pruner: str) -> optuna.Study:
    """Open Optuna's record of trials in a database, or make it.

    Raises:
        UserError: The database can't be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with errors_of(url, (Exception,)):  # drivers raise errors of many types for a wrong URL
        address = make_url(url)
        address = address.set(drivername=POSTGRESQL.get(address.drivername, address.drivername))
        wait = {"timeout": 60} if url.startswith(FILE) else {"connect_timeout": 10}  # seconds
        options = {"connect_args": wait, "pool_pre_ping": True}  # connects again after a restart of the server
        connect = partial(optuna.storages.RDBStorage, address.render_as_string(hide_password=False), options)
        try:
            storage = connect()
        except (IntegrityError, InternalError, ProgrammingError):
            time.sleep(3)  # PostgreSQL refuses to make tables that another machine is making
            storage = connect()
        return optuna.create_study(
            storage=storage, pruner=PRUNERS[pruner](), study_name=name, direction="maximize", load_if_exists=True
        )


@contextmanager
def errors_of(url: str, types: tuple[type[Exception], ...] = DATABASE_ERRORS) -> Iterator[None]:
    """Turn errors of a database into a `UserError`. Its message names the file, if there is one."""
    try:
        yield
    except types as error:
        place, argument = (url.removeprefix(FILE), None) if url.startswith(FILE) else ("the storage", "storage")
        raise UserError(f"{place} can't be used: {in_a_line(first_cause(error))}", argument) from error
