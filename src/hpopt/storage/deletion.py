"""Delete a study with all its trials, Optuna's rows included."""

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from hpopt.errors import InputError, did_you_mean
from hpopt.storage.configurations import lock_study
from hpopt.storage.database import Database
from hpopt.storage.studies import study_names


@dataclass(frozen=True, kw_only=True)
class StudyContent:
    """What is deleted with a study, whose file need not be readable: its trials, and how many workers are alive.

    `family` are the names and times of creation of the study and of what follows it, whose trials are counted too.
    """

    study_id: int
    family: tuple[tuple[str, datetime], ...]
    n_trials: int
    n_alive: int


def read_content(database: Database, name: str) -> StudyContent:
    """Return what a study has. Raises InputError with the nearest name if there is no such study."""
    with database.begin() as connection:
        row = connection.execute(_CONTENT, {"name": name}).mappings().one_or_none()
        if row is None:
            raise InputError(f"no study '{name}' in {database.address}{did_you_mean(name, study_names(database))}")
        family = connection.execute(_MEMBERS, {"study_id": row["study_id"]}).all()
    return StudyContent(**row, family=tuple((member.name, member.created_at) for member in family))


def delete_study(database: Database, study_id: int) -> None:
    """Delete a study, what follows it, and everything that refers to them.

    Workers that are alive exit at their next contact.
    """
    with database.begin() as connection:
        # No worker creates what follows it meanwhile.
        lock_study(connection, study_id)
        family = list(connection.scalars(_FAMILY, {"study_id": study_id}))
        for statement in _DELETE:
            connection.execute(statement, {"study_ids": family})


_CONTENT = sa.text(
    """
    select h.study_id,
           (
               select count(*)::int from hpopt.trials t join hpopt.study member using (study_id)
               where h.study_id in (member.study_id, member.root_id)
           ) as n_trials,
           (count(*) filter (where f.stopped_at is null and not f.is_stale))::int as n_alive
    from hpopt.study h
    join public.studies s using (study_id)
    left join hpopt.fleet f on f.study_name = s.study_name
    where s.study_name = :name
    group by h.study_id
    """
)

_MEMBERS = sa.text(
    """
    select s.study_name as name, h.created_at from hpopt.study h join public.studies s using (study_id)
    where :study_id in (h.study_id, h.root_id) order by h.study_id
    """
)

_FAMILY = sa.text("select study_id from hpopt.study where :study_id in (study_id, root_id)")

# Optuna's tables have no cascade. The rows of the studies are locked first, so that no worker starts another trial.
_DELETE = tuple(
    map(
        sa.text,
        (
            """
            select from hpopt.study h join public.studies s using (study_id)
            where h.study_id = any(:study_ids) for update
            """,
            "delete from hpopt.study where study_id = any(:study_ids)",
            *(
                f"delete from public.{table} where trial_id in "  # noqa: S608 - the tables of the next line.
                "(select trial_id from public.trials where study_id = any(:study_ids))"
                for table in (
                    *("trial_heartbeats", "trial_intermediate_values", "trial_params", "trial_system_attributes"),
                    *("trial_user_attributes", "trial_values"),
                )
            ),
            *(
                f"delete from public.{table} where study_id = any(:study_ids)"  # noqa: S608 - as above.
                for table in (
                    *("trials", "study_directions", "study_system_attributes", "study_user_attributes", "studies"),
                )
            ),
        ),
    )
)
