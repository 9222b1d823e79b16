"""Log why requests were refused: without flooding the log, and without a word that a stranger could put into it."""

from __future__ import annotations

import logging
from typing import Final

from airflow_mediation_provider.api_server.recent import Recent

log = logging.getLogger(__name__)

QUIET_SECONDS: Final = 60.0
# Different ones within a minute; a stranger who invents more than these finds no ear.
LIMIT: Final = 200


class Complaints:
    """What was logged in the last minute, so that the same is not logged again.

    :param recent: remembers it
    """

    def __init__(self, recent: Recent[bool] | None = None) -> None:
        self._recent = recent or Recent(QUIET_SECONDS, LIMIT)

    def say(self, level: int, what: str, conn_id: str, reason: str) -> None:
        """Log one sentence, at most once a minute for each connection and reason.

        :param what: happened to what, for example ``A callout was refused``
        :param conn_id: as it came with the request, so perhaps invented
        :param reason: without a secret or anything else of the request
        """
        if self._recent.add((what, conn_id, reason), True):
            log.log(level, "%s, connection %.250r: %s", what, conn_id, reason)
