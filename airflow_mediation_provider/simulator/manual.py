"""The text of ``--help`` below the options: the simulator's manual."""

from __future__ import annotations

from typing import Final

MANUAL: Final = """\
When it listens it prints one line of JSON to stdout: {"event": "ready", "url": ..., "pid": ..., "meters": [...]}.
SIGTERM or SIGINT ends it. Exit code: 0 after a signal, 1 when it cannot listen, 2 for wrong settings.

ZUORA'S API (base URL as of Zuora: no /v1)
  POST /oauth/token                              client credentials -> bearer token
  POST /meters/run/{meter}/{version}             start a NORMAL run; uniqueKey, runtimeSourceConfigs ...
  POST /meters/debug/{meter}/{version}           start a DEBUG run (flat reply)
  POST /meters/stop/{meter}/{version}?forceStop  stop all NORMAL runs of the version
  GET  /meters/{meter}/{version}/runStatus       status of the version; names no session
  POST /meters/{meter}/summary                   counts, grouped by sessionId, processorId, errorCode
  GET  /meters/{meter}/auditTrail/entries        records, paged by cursor
  POST /meters/{meter}/auditTrail/export         create an export job (csv; none or gzip); GET lists them
  GET  /meters/auditTrail/presignedUrl?fileKey   URL of an exported file, and the file itself
  GET  /v1/notification-history/callout          callouts made, the newest first; failed ones unless failedOnly=false
  POST /notifications/callout-histories/resend   send some again: an array of ids, which the control API returns
  Refused as documented: 70002103 unknown meter (404 for runStatus), 70002104 unknown version, 70002122 not running,
  70003043 stop in progress, 70002004 no Mediation, 70002006 no permission, 70002001 no entity id; a duplicate uniqueKey
  and a sixth running meter are 400 with a message, for which Zuora documents no code.
  A run's reply always has the first step of its script; the other steps follow by the clock.

DEMO METERS (without --config, or with --demo)
  1001 ends COMPLETED, 1002 FAILED (80 records, 12 errors), 1003 CANCELED, 1004 streams until it is stopped,
  1005 to 1009 end COMPLETED after 4, 6, 8, 10, 12 s, 1010 passes its DEBUG run (then COMPLETED), 1011 fails it.
  Seconds are before --time-scale. The DEBUG run of every other meter passes.

FILE (--config, YAML or JSON): the settings of SimulatorConfig, and meters. Example:
  time_scale: 0.5
  error_shape: error              # or errors, reasons, message
  meters:
    - {id: "7001", script: [[INITIALIZING, 1], [RUNNING, 3], [COMPLETED, null]], records: 50, errors: 2}
    - id: "7002"
      runs:                       # one after the other; the last one repeats
        - {script: [[INITIALIZING, 1], [RUNNING, 2], [FAILED, null]]}
        - {script: [[INITIALIZING, 1], [RUNNING, 2], [COMPLETED, null]]}
      debug_script: [[TESTING, 1], [TESTING_PASSED, null]]
      stale_for: 2                # runStatus shows the status before a start for 2 s more
    - {id: "7003", streaming: true, script: [[INITIALIZING, 1], [RUNNING, null]], stopping_for: 3,
       stop_results: [RUNNING, PAUSED], resume: same}
  A script is a list of [status, seconds]; the last step lasts. A status is a name, or a code Zuora does not document.
  More of a meter: name, versions, overlap, status_of (newest, oldest_live, latest_change), debug_visible,
  initial_status, force_result, stop_cancels_debug. More settings: required_entity, permissions, rate_limit_window,
  require_content_type, strict_track_id, permission_status, null_page, debug_enveloped, stopping_code,
  undocumented_code, export_seconds, sample_limit, first_run_id.

CALLOUTS (in the file, or POST /_simulator/config): notifications on events, and how they are delivered. Example:
  callouts:
    - url: http://127.0.0.1:8080/mediation/callouts/mediation_default
      hmac_secret: change-me        # hmac_algorithm SHA-256, hmac_output_format BASE64 or HEX, hmac_key (the header),
                                    # hmac_value {{Request.HMAC.Signed}}, hmac_data {{Request.Body}}
      username: zuora               # Basic authentication: when asked for, or at once with preemptive: true
      headers: {X-Mediation-Token: "..."}
      body: camelCase               # or labels, dotted, concatenated, snake_case: all fields; or your own template:
                                    # {"id": "{{MeterSession.Id}}", "status": "{{MeterSession.Status}}"}
      date_format: en_US            # iso, epoch_ms, en_US, en_GB, de_DE, ja_JP or a pattern of strftime; timezone
      run_types: [NORMAL]           # filters: meters, run_types, statuses
      loss: 0.5                     # faults: loss and vanish (no trace in the history), lost_answers, copies: [1, 3]
                                    # with copy_ids [same, other, none], disorder: seconds
  delivery: {attempts: 3, interval: 1800, connect_timeout: 10, data_timeout: 15, concurrency: 8}
  A 200 is a success; 1xx, 403, 408, 429, 5xx and no answer at all are tried again after the interval (scaled by
  time_scale; the timeouts are not); the rest fails. A body that is not JSON is never sent: -2000 in the history.
  Also: event (status_change, periodic, event_store_query), category, name, active, method, null_text, retry; confirm,
  retry_unauthorized, resend_same_id, seed, history_timezone, history_delay, history_context (full, tags, dotted),
  history_of (callout, attempt).

CONTROL API (JSON; errors are 400 or 404 with {"error": ...})
  GET    /_simulator/health                    meters with their status, counts, connections open now and at most
  GET    /_simulator/log?kind=&since=&meter=   everything that happened, in order of `seq`; kinds (several with commas):
         request     method, path, query, body, track_id, token, connection, open_connections, carried_out, faults,
                     finished, and once it is: status, seconds, and the outcome: answered, hung, reset, lost_reply,
                     truncated, client gone, aborted (the simulator ended first)
         token       granted, number, client_id     start       meter_id, session_id, run_type, unique_key, foreign
         transition  session_id, previous_status, status (and meter_id, version, run_type)
         refused     reason: duplicate_key, capacity, already_running
         stop        force, sessions, refused       fault, export, control
         callout     one attempt: callout_id, notification_id, change (seq of the transition), copy, attempt, url, body,
                     and once it ended: code, outcome (delivered, retried, failed, vanished), final, seconds, error
         Entries that a request caused have the request's seq as their `request`.
  POST   /_simulator/sessions                  start a foreign session: {"meter": "1001", "run_type": "NORMAL",
                                               "script": [...], "records": 5, "errors": 0, "unique_key": ...}
  GET    /_simulator/sessions?meter=           all sessions with their true status
  POST   /_simulator/sessions/{sessionId}      {"script": [["FAILED", null]]}: the rest of a session's script
  POST   /_simulator/meters/{id}               add or change a meter: the fields of the file
  POST   /_simulator/config                    change settings: {"mediation_enabled": false, "client_secret": "new"}
  POST   /_simulator/delivery                  change some settings of delivery: {"attempts": 5, "interval": 60}
  POST   /_simulator/events                    {"event": "periodic", "session_id": "R-00005468"}, or
                                               {"event": "event_store_query", "values": {"EventStoreQuery.Status": ...}}
  GET    /_simulator/callouts                  notifications, delivery, how many callouts are pending, and the history
  POST   /_simulator/faults                    activate a fault -> {"id": 1}
  GET    /_simulator/faults                    the active faults, and how often each was applied
  DELETE /_simulator/faults?id=                remove one or all; closes the connections of requests that hang
  POST   /_simulator/advance                   {"seconds": 5}, if the file has clock: manual
  POST   /_simulator/reset                     back to the start: no sessions, keys, tokens, faults, no log

FAULTS  {"kind": ..., "path": regex (^/meters/), "method": ..., "meter": ..., "after": n, "count": n, "seconds": s}
  Without count and seconds a fault lasts until it is removed. Seconds of faults are real ones.
  status        answers `status` (503), `headers`, `body`       html      200 with an HTML page
  badjson       200 with a body that is not JSON                 reset     RST, nothing carried out
  truncated     half of the reply, then closed                   hang      never answers
  latency       the reply is delayed by `delay` s                slow      the reply is sent over `delay` s
  delay_before  carried out only after `delay` s                 lost_reply  carried out, then RST
  unknown_status  runStatus has the code `code` (99)             reject_auth  401, with any token
  expire_tokens   all tokens become invalid, at once
  An answer of any kind: {"kind": "status", "status": 200, "body": {"success": false}}.
  unknown_status affects runStatus calls alone, unless a path is given.
  "carried_out": true carries the request out nevertheless: {"kind": "status", "status": 504, "carried_out": true}.
  Delays combine with one other fault; of several others the oldest is applied.

CONNECTION OF AIRFLOW
  export AIRFLOW_CONN_MEDIATION_DEFAULT='{"conn_type": "mediation", "host": "http://127.0.0.1:8099",
    "login": "simulator-client", "password": "simulator-secret"}'

EXAMPLE
  python -m airflow_mediation_provider.simulator --port 8099 --time-scale 0.2 &
  curl -s -X POST localhost:8099/_simulator/faults -d '{"kind": "status", "status": 503, "seconds": 6}'
  curl -s 'localhost:8099/_simulator/log?kind=request,start'
  curl -s -X POST localhost:8099/_simulator/config -d '{"callouts": [
    {"url": "http://127.0.0.1:8080/mediation/callouts/mediation_default", "hmac_secret": "change-me"}]}'
"""
