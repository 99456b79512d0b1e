"""Our Python client against a host of both bundled models. usage: against_host.py URL TOKEN DIR (with person.png and garment.png)"""

import base64
import inspect
import pathlib
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import anyio
import httpx
import pydantic

import atelier_client as atelier
from atelier_client import Client, Generate, JobEvent

URL, TOKEN = sys.argv[1:3]
PERSON, GARMENT = (pathlib.Path(sys.argv[3], f"{name}.png").read_bytes() for name in ("person", "garment"))
PNG = b"\x89PNG\r\n\x1a\n"
LIMIT_S = 120.0
E = TypeVar("E", bound=BaseException)


def job(job_id: str, steps: int = 2) -> Generate:
    callback = atelier.models.Callback(metadata={"user_id": "Ada – Zoë", "large": 2**70})
    return Generate(job_id=job_id, prompt="a red mug on the beach", steps=steps, width=64, height=64, callback=callback)


def refused(kind: type[E], call: Callable[[], object]) -> E:
    try:
        answer = call()
    except BaseException as error:
        assert type(error) is kind, f"{error!r} is no {kind.__name__}"
        return error
    raise AssertionError(f"{answer!r}, and no {kind.__name__}")


def keys(result: atelier.Result | None) -> list[str]:
    """Addresses are signed anew each time; the files stay."""
    assert result is not None
    return [image.key for image in result.images]


class Unsteady(httpx.HTTPTransport):
    """Loses what `loses` says, and remembers what was sent."""

    def __init__(self, loses: Callable[[int, httpx.Response], httpx.Response]) -> None:
        super().__init__()
        self.loses = loses
        self.sent: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        return self.loses(len(self.sent), super().handle_request(request))


class BreaksOff(httpx.SyncByteStream):
    """A stream that is lost after its first event."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response

    def __iter__(self) -> Iterator[bytes]:
        seen = b""
        for chunk in self.response.iter_raw():
            seen += chunk
            yield chunk
            if b"\n\n" in seen:
                raise httpx.ReadError("the connection is lost")

    def close(self) -> None:
        self.response.close()


def lost(response: httpx.Response) -> httpx.Response:
    response.read()
    raise httpx.ReadError("the answer is lost")


def unsteady(loses: Callable[[int, httpx.Response], httpx.Response]) -> tuple[Client, list[httpx.Request]]:
    transport = Unsteady(loses)
    return Client(URL, TOKEN, http=httpx.Client(transport=transport)), transport.sent


def generates(client: Client) -> None:
    assert client.ready().status == "hot"
    models = {model.name: model for model in client.models()}
    assert models["tiny-sd"].tasks == ["generate"] and models["tiny-sd"].defaults is not None, models
    taken = client.generate(job("py-1"), traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
    assert (taken.status, taken.job_id, taken.result) == ("accepted", "py-1", None), taken
    done = client.wait("py-1", timeout_s=LIMIT_S)
    assert done.state == "complete" and done.progress == 100 and done.result is not None, done
    image = client.image("py-1")
    assert image.content.startswith(PNG) and image.content_type == "image/png"
    assert len(image.content) == done.result.images[0].bytes and done.result.images[0].width == 64
    assert "py-1" in [listed.job_id for listed in client.jobs()]
    # The same again is the same job; another one under its id is none.
    again = client.generate(job("py-1"))
    assert again.status == "complete" and keys(again.result) == keys(done.result) and not again.is_replayed, again
    conflict = refused(atelier.ConflictError, lambda: client.generate(job("py-1", steps=3)))
    assert conflict.status == 409 and conflict.code == "conflict", conflict
    assert refused(atelier.NotFoundError, lambda: client.image("py-1", 7)).status == 404
    now = client.infer(job("py-2"))
    assert now.content.startswith(PNG) and now.job_id == "py-2" and (now.inference_time_ms or 0) > 0, now
    client.generate(job("py-3"), idempotency_key="key-of-python")
    client.wait("py-3", timeout_s=LIMIT_S)
    assert client.generate(job("py-3"), idempotency_key="key-of-python").is_replayed


def edits_and_tries_on(client: Client) -> None:
    address = "data:image/png;base64," + base64.b64encode(PERSON).decode()
    garment = "data:image/png;base64," + base64.b64encode(GARMENT).decode()
    form = atelier.EditForm(job_id="py-e1", prompt="x", image=[PERSON, GARMENT], steps=1, width=64, height=64)
    client.edit(form)
    client.edit(atelier.Edit(job_id="py-e2", prompt="x", images=[address], steps=1, width=64, height=64))
    config = atelier.models.TryOnConfig(seed=7, steps=1)
    both = {"masked_user_image": PERSON, "garment_image": GARMENT}
    client.tryon(atelier.TryOnForm.model_validate({"job_id": "py-t1", "user_id": "u-1", "config": config, **both}))
    client.tryon(atelier.TryOn(job_id="py-t2", person=address, garments=[garment], steps=1))
    twin = atelier.TryOnFormJson(job_id="py-t3", masked_user_image=address, garment_image=garment, config=config)
    client.tryon(twin)
    for job_id in ("py-e1", "py-e2", "py-t1", "py-t2", "py-t3"):
        done = client.wait(job_id, timeout_s=LIMIT_S)
        assert done.result is not None and done.result.model == "tiny-edit", done
    seeded = client.job("py-t1").result
    assert seeded is not None and seeded.images[0].seed == 7, seeded
    # One who waits has to say the task: the client does.
    assert client.infer(atelier.TryOn(job_id="py-t4", person=address, garments=[garment], steps=1)).content.startswith(PNG)
    assert client.infer(atelier.Edit(job_id="py-e4", prompt="x", images=[address], steps=1)).content.startswith(PNG)
    now = atelier.InferForm(job_id="py-t5", masked_user_image=PERSON, garment_image=GARMENT, steps=1, prompt="a shirt")
    assert client.infer(now).content.startswith(PNG)
    broken = atelier.EditForm(job_id="py-e5", prompt="x", image=[b"no image"])
    assert refused(atelier.InvalidRequestError, lambda: client.edit(broken)).field == "image"


def follows(client: Client) -> None:
    client.generate(job("py-f1", steps=20))
    seen: list[JobEvent] = []
    for event in client.events("py-f1"):
        seen.append(event)
        if event.name == "step":
            break
    rest = list(client.events("py-f1", last_event_id=seen[-1].id))
    ids = [event.id for event in seen + rest]
    assert len(set(ids)) == len(ids), f"an event came twice: {ids}"
    assert rest[-1].name == "complete" and rest[-1].is_end and rest[-1].job.result is not None, rest
    assert [event.job.step for event in rest] == sorted(event.job.step or 0 for event in rest), rest
    assert list(client.events("py-f1", last_event_id=rest[-1].id)) == []
    assert refused(atelier.NotFoundError, lambda: next(client.events("no-such-job"))).status == 404

    # The connection is lost after the first event: the client goes on where it was.
    def breaks(count: int, response: httpx.Response) -> httpx.Response:
        return httpx.Response(200, headers=response.headers, stream=BreaksOff(response)) if count <= 2 else response

    client.generate(job("py-f2", steps=40))
    broken, sent = unsteady(breaks)
    events = list(broken.events("py-f2"))
    assert events[-1].name == "complete" and len({event.id for event in events}) == len(events), events
    asked = [request.headers.get("last-event-id") for request in sent]
    assert len(asked) == 3 and asked[0] is None and asked[1] == events[0].id and asked[2] in [e.id for e in events], asked


def is_refused(client: Client) -> None:
    # The model knows the bounds; what goes around it is refused by the host.
    refused(pydantic.ValidationError, lambda: Generate(job_id="py-r1", prompt="x", steps=0))
    refused(pydantic.ValidationError, lambda: Generate.model_validate({"job_id": "py-r1", "prompt": "x", "stepps": 1}))
    error = refused(atelier.InvalidRequestError, lambda: client.generate({"job_id": "py-r1", "prompt": "x", "steps": 0}))
    assert (error.status, error.code, error.field) == (400, "invalid_request", "steps"), error
    assert "1" in error.message and "200" in error.message and error.request_id, error
    missing = refused(atelier.InvalidRequestError, lambda: client.generate(Generate(job_id="py-r1", prompt="x", model="none")))
    assert missing.field == "model", missing
    stranger = Client(URL, "another token of 32 characters...")
    for call in (lambda: stranger.generate(job("py-r2")), lambda: next(stranger.events("py-1")), lambda: stranger.image("py-1")):
        assert refused(atelier.UnauthorizedError, call).code == "unauthorized"
    unsendable = refused(ValueError, lambda: Client(URL, TOKEN + "\n"))
    assert "printable ASCII" in str(unsendable) and TOKEN not in str(unsendable), unsendable
    nobody = Client("http://127.0.0.1:9", TOKEN, retry=atelier.Retry(max_retries=0))
    assert isinstance(refused(atelier.HostUnreachableError, nobody.jobs).__cause__, httpx.ConnectError)
    refused(atelier.HostUnreachableError, lambda: nobody.wait("py-1"))


def cancels(client: Client) -> None:
    client.generate(job("py-c1", steps=200))
    assert "py-c1" in str(refused(atelier.WaitTimeoutError, lambda: client.wait("py-c1", timeout_s=0.3)))
    assert client.job("py-c1").state in ("queued", "running")
    assert client.cancel("py-c1").status == "cancelling"
    ended = refused(atelier.JobCancelledError, lambda: client.wait("py-c1", timeout_s=LIMIT_S))
    assert ended.job.state == "cancelled", ended
    assert refused(atelier.AlreadyEndedError, lambda: client.cancel("py-c1")).state == "cancelled"
    complete = refused(atelier.AlreadyEndedError, lambda: client.cancel("py-1"))
    assert complete.state == "complete" and complete.result is not None and complete.result.image_urls


def comes_again(client: Client) -> None:
    # Its answer is lost: the job is handed in again, and is one job.
    losing, sent = unsteady(lambda count, response: lost(response) if count == 1 else response)
    assert losing.generate(job("py-a1")).job_id == "py-a1" and len(sent) == 2
    assert [listed.job_id for listed in client.jobs()].count("py-a1") == 1
    client.wait("py-a1", timeout_s=LIMIT_S)
    # Nobody is asked twice to generate now, nor to cancel.
    once: list[Callable[[Client], object]] = [lambda one: one.infer(job("py-a2")), lambda one: one.cancel("py-a1")]
    for call in once:
        losing, sent = unsteady(lambda _, response: lost(response))
        refused(atelier.HostUnreachableError, lambda: call(losing))
        assert len(sent) == 1, sent

    def answers(status: int, headers: dict[str, str]) -> Callable[[int, httpx.Response], httpx.Response]:
        body = {"error": {"code": "busy", "message": "later"}}
        return lambda count, response: httpx.Response(status, headers=headers, json=body) if count == 1 else response

    for status in (429, 503):
        waiting, sent = unsteady(answers(status, {"retry-after": "0"}))
        assert waiting.job("py-1").state == "complete" and len(sent) == 2
        # Without the host's word there is no second time, nor where it is a long one.
        for headers in ({}, {"retry-after": "3600"}):
            waiting, sent = unsteady(answers(status, headers))
            kind = atelier.BusyError if status == 429 else atelier.UnavailableError
            assert refused(kind, lambda: waiting.job("py-1")).message == "later" and len(sent) == 1
    gateway, sent = unsteady(lambda _, response: httpx.Response(502, text="<html>bad gateway"))
    assert refused(atelier.ApiError, lambda: gateway.job("py-1")).message == "<html>bad gateway" and len(sent) == 1
    # More follow jobs than may: who waits asks for the job instead.
    full, sent = unsteady(lambda count, response: httpx.Response(429, headers={"retry-after": "5"}) if count == 1 else response)
    assert full.wait("py-1").state == "complete" and [request.url.path for request in sent[1:]] == ["/jobs/py-1"]


async def awaits() -> None:
    async with atelier.AsyncClient(URL + "/", TOKEN) as client:
        assert (await client.ready()).status == "hot" and len(await client.models()) == 2
        await client.generate(job("py-w1", steps=20))
        events = [event async for event in client.events("py-w1")]
        assert events[-1].name == "complete" and len({event.id for event in events}) == len(events) > 2, events
        assert [event async for event in client.events("py-w1", last_event_id=events[-1].id)] == []
        done = await client.wait("py-w1")
        assert keys(done.result) == keys(events[-1].job.result)
        assert (await client.image("py-w1")).content.startswith(PNG)
        assert (await client.infer(job("py-w2"))).job_id == "py-w2"
        form = atelier.EditForm(job_id="py-w3", prompt="x", image=[PERSON], steps=1, width=64, height=64)
        assert (await client.edit(form)).status == "accepted"
        await client.generate(job("py-w4", steps=200))
        calls: list[tuple[type[atelier.AtelierError], Callable[[], Awaitable[object]]]] = [
            (atelier.WaitTimeoutError, lambda: client.wait("py-w4", timeout_s=0.3)),
            (atelier.InvalidRequestError, lambda: client.tryon({"job_id": "py-w5", "person": 1})),
            (atelier.NotFoundError, lambda: client.job("no-such-job")),
            (atelier.AlreadyEndedError, lambda: client.cancel("py-w1")),
        ]
        for kind, call in calls:
            try:
                raise AssertionError(await call())
            except kind:
                pass
        await client.cancel("py-w4")
        try:
            raise AssertionError(await client.wait("py-w4", timeout_s=LIMIT_S))
        except atelier.JobCancelledError as cancelled:
            assert cancelled.job.job_id == "py-w4"
        await client.wait("py-w3", timeout_s=LIMIT_S)


def both_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, list[str]]:
        public = {name: value for name, value in vars(kind).items() if not name.startswith("_") and name not in ("close", "aclose")}
        return {name: list(inspect.signature(value).parameters) for name, value in public.items()}

    assert methods(Client) == methods(atelier.AsyncClient) and len(methods(Client)) == 12


both_have_the_same_methods()
with Client(URL, TOKEN) as own:
    for scenario in (generates, edits_and_tries_on, follows, is_refused, cancels, comes_again):
        scenario(own)
anyio.run(awaits)
print("all of it")
