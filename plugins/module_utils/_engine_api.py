# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The engine's HTTP surface, as a module on the head asks it. The key goes into a header and nowhere else.

Private to the collection.
"""

from __future__ import annotations

import http.client
import json
import time
import typing as t
import urllib.error
import urllib.request
from contextlib import contextmanager

if t.TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What a module that asks the engine needs to know, as doc fragment `_engine_api` describes it.
ENGINE_OPTIONS: dict[str, dict[str, t.Any]] = {
    "url": {"type": "str", "required": True},
    "model": {"type": "str", "required": True},
    "api_key_file": {"type": "path", "default": "/etc/sparkrig/secrets.env", "no_log": False},
    "api_key_variable": {"type": "str", "default": "VLLM_API_KEY", "no_log": False},
}


def key_of(params: Mapping[str, t.Any]) -> str | None:
    """The API key that the options name; None when there is no file or no such variable."""
    variable = params["api_key_variable"]
    try:
        with open(params["api_key_file"], encoding="utf-8") as handle:
            lines = handle.read().splitlines()
    except FileNotFoundError:
        return None
    return next((line.split("=", 1)[1] for line in lines if line.startswith(f"{variable}=")), None)


class Api:
    """The engine's HTTP surface, never through a proxy."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url.rstrip("/")
        self.headers = {"Content-Type": "application/json"}
        if key:
            self.headers["Authorization"] = f"Bearer {key}"
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @contextmanager
    def _answer(self, path: str, timeout_s: float, body: dict[str, t.Any] | None) -> Iterator[t.Any]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=self.headers)
        try:
            with self.opener.open(request, timeout=timeout_s) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace").strip()
            raise ValueError(f"{path} answered {error.code}: {text[:300] or error.reason}") from error
        except TimeoutError as error:
            raise ValueError(f"{path} did not answer within {timeout_s:g} s") from error
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            raise ValueError(f"{path} at {self.url} does not answer: {reason}") from error

    def get(self, path: str, timeout_s: float, body: dict[str, t.Any] | None = None) -> str:
        """The body of the answer; ValueError with the reason when there is none."""
        with self._answer(path, timeout_s, body) as answer:
            return str(answer.read().decode("utf-8", "replace"))

    def events(self, path: str, timeout_s: float, body: dict[str, t.Any]) -> Iterator[tuple[float, dict[str, t.Any]]]:
        """(when it came, content) of each server-sent event up to ``[DONE]``, in the order of their coming.

        The time is that of the monotonic clock. ValueError with the reason when the stream breaks, or when nothing came
        for *timeout_s*.
        """
        with self._answer(path, timeout_s, body) as answer:
            for line in answer:
                now = time.monotonic()
                if not line.startswith(b"data:"):
                    continue
                text = line[len(b"data:") :].decode("utf-8", "replace").strip()
                if text == "[DONE]":
                    return
                content = json.loads(text)
                if "error" in content:
                    raise ValueError(f"{path} broke off: {str(content['error'])[:300]}")
                yield now, content
        raise ValueError(f"{path} broke off before its end")
