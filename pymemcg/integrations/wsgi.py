# SPDX-License-Identifier: Apache-2.0
"""Requests of a WSGI application as spans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pymemcg.integrations._requests import trace_id
from pymemcg.integrations._service import Service

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pymemcg.spans import Span

    Environ = dict[str, Any]
    StartResponse = Callable[..., Callable[[bytes], object]]
    Application = Callable[[Environ, StartResponse], Iterable[bytes]]


class WSGIMiddleware:
    """Makes a span of every request, and logs those that the kernel held for memory.

    `app = pymemcg.WSGIMiddleware(app)`. The sampler starts in each worker at its first request, so that `gunicorn --preload`
    and other servers that fork after they loaded the application work, and stops with the worker; where nothing can be sampled,
    one warning says why and the service goes on. `environ["pymemcg.sampler"]` is the sampler, for `hits()` and `summary()`.

    A request ends when its response is given out whole: a response that is made while it is given out is within the span.

    Args:
        app: The application.
        log_above_ms: Log requests that lost at least so many milliseconds to reclaim, as warnings of the logger "pymemcg.hits".
        options: For the `Sampler`.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(self, app: Application, *, log_above_ms: float = 1.0, **options: Any) -> None:
        self.app = app
        self._service = Service(log_above_ms, options)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        """Serve, as PEP 3333 has it."""
        service = self._service
        if not service.began:
            service.begin_beside()
        environ["pymemcg.sampler"] = service.sampler
        span = service.span("")
        try:
            body = self.app(environ, start_response)
        except BaseException:
            self._end(span, environ)
            raise
        # Servers look at lists for their length, and at files for sendfile(2): those stay what they are.
        if isinstance(body, (list, tuple, environ.get("wsgi.file_wrapper") or ())):
            self._end(span, environ)
            return body
        return _Body(body, lambda: self._end(span, environ))

    def _end(self, span: Span, environ: Environ) -> None:
        span.name = _name(self._service, environ)
        span.ref = trace_id(environ.get("HTTP_TRACEPARENT", ""))
        span.__exit__(None, None, None)


class _Body:
    """A response that is not there yet; says when it is."""

    def __init__(self, body: Iterable[bytes], ended: Callable[[], None]) -> None:
        self._body = body
        self._ended = ended

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._body)

    def close(self) -> None:
        """By the server, whatever happened: PEP 3333 promises it."""
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                close()
        finally:
            self._ended()


def _name(service: Service, environ: Environ) -> str:
    template = _template(environ)
    if template is not None:
        return service.names.name(environ["REQUEST_METHOD"], environ.get("SCRIPT_NAME", "") + template, template=True)
    path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    path = path.encode("latin-1", "replace").decode("utf-8", "replace")  # PEP 3333 wraps bytes so
    return service.names.name(environ["REQUEST_METHOD"], path or "/", template=False)


def _template(environ: Environ) -> str | None:
    """What Flask (by werkzeug), Bottle and Pyramid leave of their routes."""
    rule = getattr(environ.get("werkzeug.request"), "url_rule", None) or environ.get("bottle.route")
    template = getattr(rule, "rule", None)
    if template is None:
        template = getattr(environ.get("bfg.routes.route"), "pattern", None)
    return template if isinstance(template, str) else None
