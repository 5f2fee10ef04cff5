"""The site that the pages make up: one look, one navigation, and the rules that hold for each of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from flask import Response, g, redirect, request
from werkzeug.exceptions import HTTPException, NotFound
from werkzeug.wrappers import Response as AnyResponse

from ...access.signing import Signer
from ...access.tokens import INFER, METRICS, WORKER
from ...cluster.keys.sign_outs import SignOuts
from ...errors import Forbidden, ModelyardError, Unauthorized, Unavailable
from ...files import state_folder
from ...version import __version__
from ...worker.protocol import Service
from ..request import guard
from ..request.access_log import log_access
from ..request.bodies import limit_form
from ..request.mounted import MountedBlueprint
from ..request.problems import unforeseen
from . import live
from .rendering import Assets, environment
from .visitors import OUTCOME_COOKIE, SAFE_METHODS, SignIns, Visitor, check_origin

EVERYONE: tuple[str, ...] = ()
"""The needs of a page that no sign-in is needed for."""
ANY_SCOPE = (INFER, WORKER, METRICS)
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Without a referrer browsers would send no Origin with forms either.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
LONGEST_FORM = 256 * 1024
REGION_TYPE = "text/plain"
"""What the script of a page without a stream accepts: the live region alone, once, to be put in place."""

View = Callable[[], AnyResponse]
Reader = Callable[[], dict[str, Any]]
"""Returns the values of a template, in or after a request."""


class Entry(NamedTuple):
    """A place in the navigation."""

    label: str
    page: str
    needs: tuple[str, ...]


class Site:
    """The pages of a service, below one path. Add them before the blueprint is registered."""

    def __init__(self, service: Service, path: str, docs: str | None = None, name: str = "modelyard_pages") -> None:
        """Begin a site without pages; ``docs`` is the path of the page of all calls. Raises ConfigError."""
        self.service = service
        self.path = path
        self._docs = docs
        self.blueprint = MountedBlueprint(name, __name__, url_prefix=path)
        settings = service.settings
        signer = Signer(settings.pages_secret, lambda: state_folder(settings.state_path, settings.instance_name))
        door = guard.Guard(settings, service.keys, requires_keys=settings.requires_keys)
        sign_outs = SignOuts(settings)
        service.when_stopped(sign_outs.close)
        self.sign_ins = SignIns(door, signer, sign_outs, path)
        self._assets = Assets()
        self._streams = live.LiveStreams(service, tick=live.TICK)
        self._entries: list[Entry] = []
        self._needs: dict[str, tuple[str, ...]] = {}
        self._routine = {"static_file"}
        """The views whose successes are logged at debug level."""
        self._environment = environment()
        self._install()

    # What a page is added with

    def add(
        self,
        page: str,
        view: View,
        *,
        needs: Iterable[str] = ANY_SCOPE,
        methods: Iterable[str] = ("GET",),
        label: str | None = None,
    ) -> None:
        """Answer ``page``, a path below that of the site, by ``view``, for visitors with one of the scopes ``needs``.

        With ``label`` the page is in the navigation, after those added before.
        """
        endpoint = "_".join(re.findall(r"\w+", page)) or "home"
        self._needs[endpoint] = tuple(needs)
        if SAFE_METHODS.issuperset(methods):
            self._routine.add(endpoint)
        if label is not None:
            self._entries.append(Entry(label, page, tuple(needs)))
        self.blueprint.add_url_rule(f"/{page}", endpoint, view, methods=[*methods])

    def add_live(
        self,
        page: str,
        template: str,
        read: Callable[[], Reader],
        *,
        more: Callable[[], dict[str, Any]] = dict,
        needs: Iterable[str] = ANY_SCOPE,
        label: str | None = None,
    ) -> None:
        """Add a page with a region that follows what happens, of the templates ``NAME.html`` and ``NAME_live.html``.

        ``read()`` is called in each request, and returns what returns the values of both, also after it; ``more()``
        returns those that the page alone has.
        """
        events = f"{page}/events".removeprefix("/")

        def whole() -> AnyResponse:
            return self.render(f"{template}.html", live=events, **read()(), **more())

        def follow() -> AnyResponse:
            reader, frame = read(), self.frame()
            visitor: Visitor = frame["visitor"]

            def region() -> str:
                return self.rendered(f"{template}_live.html", **frame, **reader())

            if request.accept_mimetypes.best == REGION_TYPE:
                return Response(region(), content_type=f"{REGION_TYPE}; charset=utf-8")
            response = self._streams.open(region, lambda: self.sign_ins.is_current(visitor))
            return response or Response(status=HTTPStatus.NO_CONTENT)

        self.add(page, whole, needs=needs, label=label)
        self.add(events, follow, needs=needs)

    def render(self, template: str, code: int = HTTPStatus.OK, **values: Any) -> Response:
        """Return the page of a template for the current visitor, with a status ``code``."""
        text = self.rendered(template, **self.frame(), **values)
        return Response(text, code, content_type="text/html; charset=utf-8")

    def rendered(self, template: str, **values: Any) -> str:
        """Return the text of a template. It needs no request, but what `frame` returned in one."""
        return self._environment.get_template(template).render(values)

    def frame(self) -> dict[str, Any]:
        """Return the values that every template has, of the current request."""
        root = request.script_root + self.path

        def link(page: str = "", **query: str) -> str:
            return f"{root}/{page}{'?' if query else ''}{urlencode(query)}"

        visitor = g.get("modelyard_visitor") or Visitor(frozenset())
        return {
            "link": link,
            "calls_page": None if self._docs is None else request.script_root + self._docs,
            "asset": lambda name: link(self._assets.address(name)),
            "visitor": visitor,
            "navigation": [entry for entry in self._entries if not entry.needs or visitor.may(entry.needs)],
            "query": request.query_string.decode("ascii", "replace"),
            "current": request.path.removeprefix(self.path).removeprefix("/"),
            "service": self.service.settings,
            "version": __version__,
            "outcome": self.sign_ins.outcome(request),
        }

    def link_to(self, page: str = "", **query: str) -> str:
        """Return the address of a page, for a redirect."""
        text: str = self.frame()["link"](page, **query)
        return text

    def go_to(self, page: str = "", **query: str) -> AnyResponse:
        """Return the redirect that follows a form."""
        return redirect(self.link_to(page, **query), HTTPStatus.SEE_OTHER)

    # What holds for all of them

    def _install(self) -> None:
        blueprint, settings = self.blueprint, self.service.settings
        counts, recent = self.service.metrics, self.service.recent
        log_access(
            blueprint,
            enabled=settings.access_log,
            metrics=counts,
            recent=recent,
            keys=self.service.keys,
            routine=self._routine,
        )
        blueprint.before_request(self._enter)
        blueprint.after_request(self._leave)
        blueprint.register_error_handler(ModelyardError, self._refuse)
        blueprint.register_error_handler(HTTPException, self._refuse_http)
        blueprint.register_error_handler(Exception, lambda error: self._refuse(unforeseen(error)))
        blueprint.add_url_rule("/static/<version>/<name>", "static_file", self._assets.response)
        unknown = ["GET", "POST", "PUT", "PATCH", "DELETE"]
        blueprint.add_url_rule("/<path:rest>", "unknown", _unknown, methods=unknown)

    def _enter(self) -> AnyResponse | None:
        endpoint = (request.endpoint or "").rpartition(".")[2]
        if endpoint == "static_file":
            return None
        limit_form(request, LONGEST_FORM)
        visitor = g.modelyard_visitor = self.sign_ins.visitor(request)
        g.modelyard_line.caller = visitor.name or None
        g.modelyard_line.api_key = visitor.key
        check_origin(request)
        needs = self._needs.get(endpoint, EVERYONE)
        if not needs or visitor.may(needs):
            return None
        if visitor.holder is not None:
            raise Forbidden(f"this page needs the scope {' or '.join(needs)}, which {visitor.name} does not have")
        if request.method in SAFE_METHODS and not wants_data():
            query = request.query_string.decode("ascii", "replace")
            return self.go_to("sign-in", next=request.path.removeprefix(self.path) + (query and f"?{query}"))
        raise Unauthorized("sign in first")

    def _leave(self, response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        if "Cache-Control" not in response.headers:
            response.headers["Cache-Control"] = "no-store"
        is_page = response.status_code == HTTPStatus.OK and response.mimetype == "text/html"
        if is_page and OUTCOME_COOKIE in request.cookies:
            self.sign_ins.forget_outcome(response, request)
        return response

    # Errors

    def _refuse(self, error: ModelyardError) -> AnyResponse:
        if (line := g.get("modelyard_line")) is not None:
            line.error = error.code
        response = self._error_page(error.status, error.title, str(error))
        if isinstance(error, Unavailable):
            response.headers["Retry-After"] = str(error.retry_after)
        return response

    def _refuse_http(self, error: HTTPException) -> AnyResponse:
        if error.response is not None or (error.code or 500) < HTTPStatus.BAD_REQUEST:
            return error.get_response(request.environ)
        return self._error_page(error.code or 500, error.name, error.description or error.name)

    def _error_page(self, status: int, title: str, detail: str) -> Response:
        if wants_data():
            return Response(f"{title}: {detail}\n", status, content_type="text/plain; charset=utf-8")
        return self.render("error.html", status, status=status, title=title, detail=detail)


def wants_data() -> bool:
    """Return whether the current request is one of the script, which reads no page."""
    accepted = request.accept_mimetypes
    return bool(accepted) and not accepted.accept_html


def _unknown(rest: str) -> AnyResponse:
    raise NotFound(f"there is no page {rest!r} here")
