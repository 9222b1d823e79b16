"""What may be said about a run's sources, checked when the DAG is parsed.

Source: https://docs.zuora.com/en/zuora-platform/extensibility/mediation/meters/metering-apis/runtime-configuration-for-meter-runs
and https://developer.zuora.com/v1-api-reference/api/meters/runspecificversionofmeter
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from airflow_mediation_provider.operators.arguments import is_template

# The key that carries the source's own settings, and those of its settings that Zuora requires. STREAMING_API is named
# by the documentation, but the object that would configure it is not.
SOURCE_TYPES: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "LOCAL_FS": ("localFs", ("fileId",)),
    "S3": ("s3", ("paths", "fileFormat")),
    "SNOWFLAKE": ("snowflake", ()),
    "EVENT_STORE": ("eventStore", ("storeId",)),
    "STREAMING_API": ("", ()),
}
FILE_FORMATS: Final = ("CSV", "EXCEL", "PARQUET", "JSON", "XML", "AVRO")
_DATE: Final = re.compile(r"\d{4}-\d{2}-\d{2}")


def validate_runtime_source_configs(value: object, argument: str = "runtime_source_configs") -> None:
    """Check ``runtimeSourceConfigs``: a list of objects with a known ``sourceType`` and its required settings.

    :raises ValueError: naming the item, the key, and what is allowed
    """
    for where, item in _items(value, argument):
        source_type = item.get("sourceType")
        if is_template(source_type):
            continue
        if source_type not in SOURCE_TYPES:
            raise ValueError(f"{where}['sourceType'] must be one of {', '.join(SOURCE_TYPES)}, not {source_type!r}")
        settings_key, required = SOURCE_TYPES[source_type]
        for other, _ in SOURCE_TYPES.values():
            if other and other in item and other != settings_key:
                raise ValueError(f"{where} has {other!r}, which does not belong to sourceType {source_type}")
        settings = item.get(settings_key, {})
        if is_template(settings):
            continue
        if not isinstance(settings, Mapping):
            raise ValueError(f"{where}[{settings_key!r}] must be an object, not {type(settings).__name__}")
        _require(f"{where}[{settings_key!r}]" if settings_key else where, settings, required)
        _check_settings(f"{where}[{settings_key!r}]", settings)


def validate_source_options(value: object, argument: str = "source_options", *, debug: bool = False) -> None:
    """Check ``sourceOptions``: a NORMAL run needs ``localFileId`` in each item; a DEBUG run, one source of its rows.

    :raises ValueError: naming the item and the key
    """
    rows = ("sampleFileId", "localFileId", "testData", "testDataId")
    for where, item in _items(value, argument):
        if not debug:
            _require(where, item, ("localFileId",))
        elif sum(item.get(key) is not None for key in rows) != 1:
            raise ValueError(f"{where} must have exactly one of {', '.join(rows)}")


def validate_event_store_source_options(value: object, argument: str = "event_store_source_options") -> None:
    """Check ``eventStoreSourceOptions``: ``processorId``, and dates as ``YYYY-MM-DD``.

    :raises ValueError: naming the item and the key
    """
    for where, item in _items(value, argument):
        _require(where, item, ("processorId",))
        _check_dates(where, item)


def _items(value: object, argument: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Return the items with their names; none where the value is unset or not known yet."""
    if value is None or is_template(value):
        return []
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ValueError(f"{argument} must be a list of objects, not {type(value).__name__}")
    if not value:
        raise ValueError(f"{argument} is empty: leave it out to run the meter with its own sources")
    items = []
    for index, item in enumerate(value):
        if is_template(item):
            continue
        if not isinstance(item, Mapping):
            raise ValueError(f"{argument}[{index}] must be an object, not {type(item).__name__}")
        items.append((f"{argument}[{index}]", item))
    return items


def _require(where: str, settings: Mapping[str, Any], required: Sequence[str]) -> None:
    missing = [key for key in required if settings.get(key) in (None, "", [])]
    if missing:
        raise ValueError(f"{where} needs {' and '.join(repr(key) for key in missing)}")


def _check_settings(where: str, settings: Mapping[str, Any]) -> None:
    file_format = settings.get("fileFormat", settings.get("unloadFileFormat"))
    if file_format is not None and not is_template(file_format) and file_format not in FILE_FORMATS:
        raise ValueError(f"{where} has the file format {file_format!r}: allowed are {', '.join(FILE_FORMATS)}")
    paths = settings.get("paths")
    if paths is not None and not is_template(paths) and (isinstance(paths, str) or not isinstance(paths, Sequence)):
        raise ValueError(f"{where}['paths'] must be a list of texts, not {type(paths).__name__}")
    if settings.get("query") and (settings.get("startDate") or settings.get("endDate")):
        raise ValueError(f"{where} has both 'query' and a date range: Zuora takes one of them")
    _check_dates(where, settings)


def _check_dates(where: str, settings: Mapping[str, Any]) -> None:
    for key in ("startDate", "endDate"):
        date = settings.get(key)
        if date is not None and not is_template(date) and not (isinstance(date, str) and _DATE.fullmatch(date)):
            raise ValueError(f"{where}[{key!r}] must be a date as YYYY-MM-DD, not {date!r}")
