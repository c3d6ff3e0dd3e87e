"""Errors as HTTP answers: `{"error": to_dict()}` with a status by code. The only place that knows HTTP statuses."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from secondsite.errors import InvalidInputError, NotFoundError, SecondSiteError

log = logging.getLogger("secondsite.service")

STATUS: Final[Mapping[str, int]] = {
    "invalid_input": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "operation_refused": 409,
    "stale_epoch": 409,
    "out_of_sequence": 409,
    "tracking_lost": 409,
    "corrupt": 422,
    "pinned": 423,
    "locked_out": 429,
    "unsupported": 501,
    "unavailable": 503,
    "timeout": 504,
    "no_space": 507,
}


def error_answer(error: SecondSiteError) -> JSONResponse:
    """Return the answer for an error of ours."""
    headers = {"WWW-Authenticate": "Bearer"} if error.code == "unauthenticated" else None
    if "retry_after_s" in error.attributes:
        headers = {"Retry-After": str(error.attributes["retry_after_s"])}
    return JSONResponse({"error": error.to_dict()}, STATUS.get(error.code, 500), headers=headers)


def install(app: FastAPI) -> None:
    """Let every error leave in the one form."""

    async def ours(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, SecondSiteError)
        return error_answer(error)

    async def invalid(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        fields = [
            {"field": ".".join(str(part) for part in found["loc"][1:]), "message": found["msg"]}
            for found in error.errors()
        ]
        shown = "; ".join(f"{entry['field']}: {entry['message']}" for entry in fields[:5])
        return error_answer(InvalidInputError(f"the request is not valid: {shown}", fields=fields))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path}"
        answer = error_answer(NotFoundError(f"{what} is not served here"))
        answer.status_code = error.status_code
        return answer

    async def unforeseen(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return error_answer(SecondSiteError("internal error", hint="the service's log has the details"))

    app.add_exception_handler(SecondSiteError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unforeseen)
