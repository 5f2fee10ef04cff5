"""Register, log in, log out."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flask import Blueprint, current_app, flash, g, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue

from service import database, users

blueprint = Blueprint("auth", __name__)


def login_required(view: Callable[..., Any]) -> Callable[..., Any]:
    """Send those who are not logged in to the login page; for the others there is ``g.user``."""

    @functools.wraps(view)
    def guarded(**arguments: Any) -> Any:
        with database.opened(current_app.config["DATABASE"]) as db:
            g.user = users.find(db, session.get("user"))
        return view(**arguments) if g.user else redirect(url_for("auth.login"))

    return guarded


@blueprint.route("/register", methods=["GET", "POST"])
def register() -> ResponseReturnValue:
    if request.method == "POST":
        name, password = request.form["name"].strip(), request.form["password"]
        with database.opened(current_app.config["DATABASE"]) as db:
            if name and password and users.add(db, name, password):
                return redirect(url_for("auth.login"))
        flash("That name is taken, or something is empty.")
    return render_template("enter.html", title="Register")


@blueprint.route("/login", methods=["GET", "POST"])
def login() -> ResponseReturnValue:
    if request.method == "POST":
        with database.opened(current_app.config["DATABASE"]) as db:
            user = users.check(db, request.form["name"].strip(), request.form["password"])
        if user is not None:
            session.clear()
            session["user"] = user["id"]
            return redirect(url_for("pages.home"))
        flash("Nobody of that name has that password.")
    return render_template("enter.html", title="Log in")


@blueprint.post("/logout")
def logout() -> ResponseReturnValue:
    session.clear()
    return redirect(url_for("auth.login"))
