"""Write into the database of a running study as stock Optuna and other programs do, hostile values included."""

import random
from collections.abc import Callable
from typing import Any

import hostile
import optuna
import sqlalchemy as sa
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import OptunaError
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from hpopt.errors import DatabaseError
from hpopt.storage.database import Database

# The user attribute of all trials that are written here.
MARK = "written by another program"
_N_DRAWN = 50
_N_STUDIES = 4
# Workers hold locks on the rows of the study, frozen ones too.
_TIMEOUTS = {"options": "-c lock_timeout=1s -c statement_timeout=3s"}
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class ForeignWriter:
    """Another program with connections of its own; `write` does one thing at a time, by a seed."""

    def __init__(self, url: str, study_name: str, seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._database = Database(sa.make_url(url).update_query_dict(_TIMEOUTS).render_as_string(hide_password=False))
        self._random = random.Random(seed)  # noqa: S311 - as for the schedule of faults.
        self._study_name = study_name
        self._values: list[Any] = []
        self._rows: list[list[hostile.ForeignTrial]] = []
        hostile.draw(st.tuples(hostile.TEXTS, hostile.VALUES), _N_DRAWN, seed, self._values.append)
        hostile.draw(st.lists(hostile.TRIALS, max_size=5), _N_DRAWN, seed, self._rows.append)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    def write(self) -> bool:
        """Write something, and return whether the database and stock Optuna have taken it."""
        actions: list[Callable[[], None]] = [
            self._add_trial,
            self._enqueue,
            self._set_attributes,
            self._write_study,
            self._delete_study,
        ]
        try:
            self._random.choice(actions)()
        except (DatabaseError, OptunaError, sa.exc.SQLAlchemyError, ValueError, TypeError, KeyError, OverflowError):
            # The server is down or full, the trial has finished, or stock Optuna refuses the value.
            return False
        return True

    def _study(self) -> optuna.Study:
        storage = RDBStorage(self._database.url, engine_kwargs={"poolclass": sa.NullPool})
        return optuna.load_study(study_name=self._study_name, storage=storage)

    def _add_trial(self) -> None:
        """Add a finished trial: of the search space, with another range, or with another parameter."""
        params: dict[str, Any] = {"rate": 0.5, "width": 3, "shape": "cosine", "ending": 9}
        distributions = {
            "rate": FloatDistribution(1e-3, self._random.choice((1.0, 2.0)), log=True),
            "width": optuna.distributions.IntDistribution(1, 8),
            "shape": CategoricalDistribution(("cosine", "linear", "constant")),
            "ending": optuna.distributions.IntDistribution(0, 9),
        }
        name, value = self._random.choice(self._values)
        if self._random.random() < 0.5:  # noqa: PLR2004 - one in two.
            params[name], distributions[name] = value, CategoricalDistribution((value, "other"))
        trial = create_trial(
            state=self._random.choice(_FINISHED),
            value=self._random.choice((1e-3, float("inf"), -1e308)),
            params=params,
            distributions=distributions,
            user_attrs={MARK: True, name: value},
        )
        self._study().add_trial(trial)

    def _enqueue(self) -> None:
        """Enqueue a trial that workers run, or one that they refuse."""
        name, value = self._random.choice(self._values)
        params = self._random.choice(({"rate": 0.5}, {"rate": 7.0}, {"shape": value}, {name: value}))
        self._study().enqueue_trial(params, user_attrs={MARK: True})

    def _set_attributes(self) -> None:
        """Set attributes of the study and of its running trials."""
        study = self._study()
        storage, study_id = study._storage, study._study_id  # noqa: SLF001 - Optuna has no public way.
        key, value = self._random.choice(self._values)
        study.set_user_attr(key, value)
        storage.set_study_system_attr(study_id, self._random.choice((key, "study:metric_names", "preferences")), value)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            storage.set_trial_user_attr(trial._trial_id, key, value)  # noqa: SLF001 - as above.

    def _write_study(self) -> None:
        """Write another study with rows of which any can be damaged."""
        name = f"foreign {self._random.randrange(_N_STUDIES)}"
        hostile.write_trials(self._database, name, self._random.choice(self._rows))

    def _delete_study(self) -> None:
        """Delete another study as SQL does, since stock Optuna does not read damaged rows."""
        name = f"foreign {self._random.randrange(_N_STUDIES)}"
        with self._database.begin() as connection:
            connection.execute(sa.text("delete from public.studies where study_name = :name"), {"name": name})
