"""How this project opens MLflow: bounded in time, silent to the outside, errors translated once.

MLflow is imported only where something is really tracked: the import costs about a second and a half of CPU.
"""

from __future__ import annotations

import contextlib
import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from isr_dpo.config import Recipe
from isr_dpo.errors import OutsideError, RecipeError

# MLflow's own defaults (7 retries, 120 s each) let a step hang for a quarter of an hour on a server that is away.
_HTTP = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}


def tracking_uri(recipe: Recipe) -> str:
    """Where MLflow is: the injected address together with an injected run, else the recipe's."""
    if "MLFLOW_RUN_ID" in os.environ and os.environ.get("MLFLOW_TRACKING_URI"):
        return os.environ["MLFLOW_TRACKING_URI"]
    return recipe.tracking.uri


def open_client(uri: str, *, create: bool = True) -> Any:
    """An `MlflowClient` for tracking and registry at `uri`.

    An SQLite database is made where there is none, which takes some seconds once; without `create` that is an error.

    Raises:
        OutsideError: nothing usable answers there, within about a minute.
        RecipeError: no database file there, and none is to be made.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for name, value in _HTTP.items():
        os.environ.setdefault(name, value)
    if uri != os.environ.get("MLFLOW_TRACKING_URI") and os.environ.get("MLFLOW_TRACKING_AUTH", "").startswith("kube"):
        # The pod's own token is for the address it was injected with, never for one that a recipe names.
        del os.environ["MLFLOW_TRACKING_AUTH"]
    with _no_garbage_collection():
        from mlflow import MlflowClient

        if is_database(uri):
            import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    with translated(uri):
        if is_database(uri):
            _probe(uri, create=create)
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def is_database(uri: str) -> bool:
    """Whether MLflow at `uri` is a database that this process opens itself, rather than a server."""
    return uri.partition("://")[0].partition("+")[0] in ("sqlite", "postgresql", "mysql", "mssql")


def sqlite_file(uri: str) -> Path | None:
    """`sqlite:///relative` and `sqlite:////absolute`; None for other databases and in memory."""
    scheme, _, path = uri.partition(":///")
    return Path(path).absolute() if scheme.partition("+")[0] == "sqlite" and path not in ("", ":memory:") else None


@contextlib.contextmanager
def translated(uri: str) -> Iterator[None]:
    """MLflow's and the database's errors as OutsideError naming `uri` without a password."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError) as error:
        said = " ".join(str(error).split())[:500].replace(uri, _shown(uri))
        raise OutsideError(f"MLflow at {_shown(uri)}: {said}") from error


def _probe(uri: str, *, create: bool) -> None:
    """Opens the database once: MLflow itself would retry for minutes."""
    import sqlalchemy

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        if not create:
            raise RecipeError(f"there is no MLflow database {file}; --tracking-uri names the one a run wrote to")
        _create_sqlite(file)
    try:
        engine = sqlalchemy.create_engine(uri)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"{_shown(uri)}: its driver {error.name} is not installed. An address may name another, such as "
            "postgresql+psycopg2://, which psycopg2-binary brings"
        ) from error
    with engine.connect():
        pass
    engine.dispose()


def _create_sqlite(file: Path) -> None:
    """MLflow's own schema creation, in a scratch file that then takes its place whole: a killed step leaves no half
    schema behind. Scratch needs no fsync after each of the sixty migrations (6.0 to 1.2 s measured)."""
    import sqlalchemy
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    def unsynchronised(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".mlflow-") as folder:
        scratch = Path(folder) / "new.db"
        sqlalchemy.event.listen(sqlalchemy.Engine, "connect", unsynchronised)
        try:
            SqlAlchemyStore(f"sqlite:///{scratch}", str(file.parent / "mlartifacts")).engine.dispose()
        finally:
            sqlalchemy.event.remove(sqlalchemy.Engine, "connect", unsynchronised)
        with scratch.open("rb") as written:
            os.fsync(written.fileno())
        with contextlib.suppress(FileExistsError):  # another step was faster
            os.link(scratch, file)


def _shown(uri: str) -> str:
    """`uri` without the user and password it may carry."""
    scheme, separator, rest = uri.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Importing MLflow allocates so much that a fifth of its time is the collector's (1.8 to 1.4 s measured)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
