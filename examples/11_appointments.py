"""Mails about an appointment: reminders a day and an hour before it, and a question half an hour after it.

python examples/11_appointments.py

A booking emits an event that will occur at the time of the appointment. Each of the workflow's offsets starts a run,
that long before or after the event. Bob moves his appointment after the first reminder, and is reminded of the new
time; Eve cancels hers, and gets no more mails. The engine is on virtual time, so days pass in an instant.
"""

import asyncio
from datetime import timedelta
from tempfile import TemporaryDirectory

from pydantic import BaseModel

from aioflow import Event, complete, entity_type, event_workflow, get_run, step
from aioflow.testing import TimeMachine

DAY, HOUR = timedelta(days=1), timedelta(hours=1)


@entity_type
class Appointment(BaseModel):
    id: int
    email: str
    treatment: str


@event_workflow("appointment", offsets=[-DAY, -HOUR, timedelta(minutes=30)])
class Reminder:
    class Context(BaseModel):
        email: str

    @classmethod
    def create_context(cls, event: Event):
        return cls.Context(email=event.entity.email)

    @step(start=True)
    async def send(self, event: Event):
        left = event.at - get_run().now
        if left < timedelta(0):
            text = f"how was your {event.entity.treatment}?"
        else:
            text = f"your {event.entity.treatment} is in {left // HOUR} h, at {event.at:%H:%M}"
        print(f"To {event.entity.email}: {text}")
        return complete()


async def main() -> None:
    with TemporaryDirectory() as folder:
        async with TimeMachine(f"sqlite:///{folder}/appointments.db") as flow:
            day = (flow.now + 3 * DAY).replace(minute=0, second=0, microsecond=0)
            ten, eleven, noon = (day.replace(hour=hour) for hour in (10, 11, 12))
            for id_, email, at in ((1, "ann", ten), (2, "bob", eleven), (3, "eve", noon)):
                # An event_id of our own: an appointment that is emitted twice by mistake is recorded once.
                booked = Appointment(id=id_, email=email, treatment="massage")
                await flow.emit("appointment", booked, at=at, event_id=f"appointment-{id_}")

            await flow.advance(noon - HOUR / 2 - DAY - flow.now)  # half an hour before Eve's first reminder
            moved = Appointment(id=2, email="bob", treatment="massage")
            await flow.emit("appointment", moved, at=eleven + 2 * DAY, event_id="appointment-2", replace=True)
            print("Bob has moved his by two days.")

            await flow.advance(DAY - HOUR)  # half an hour before Eve's second reminder
            await flow.cancel_event("appointment-3")
            print("Eve has cancelled hers.")

            await flow.advance(days=7)
            for event in await flow.events(name="appointment", order="id"):
                runs = await flow.runs(event_id=event.id)
                print(f"{event.entity.email}: {event.status}, {len(runs)} mails")


if __name__ == "__main__":
    asyncio.run(main())
