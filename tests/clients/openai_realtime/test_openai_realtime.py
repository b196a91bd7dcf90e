"""The openai package, as it is published, over the Realtime WebSocket of Hearken with nano."""

import asyncio
import base64
import json
import os

from openai import AsyncOpenAI
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from sound import question

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the current weather in a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
EVENTS = TypeAdapter(RealtimeServerEvent)
PATIENCE = 120


def client(key="none"):
    return AsyncOpenAI(base_url=os.environ["HEARKEN_URL"] + "/v1", api_key=key, max_retries=0)


class Talk:
    """A connection, its events checked strictly against the SDK's own types as they come."""

    def __init__(self, connection):
        self.connection = connection

    async def until(self, kind):
        """All events up to the first of this kind."""
        events = []
        async with asyncio.timeout(PATIENCE):
            async for event in self.connection:
                EVENTS.validate_python(event.to_dict())
                assert event.type != "error", event
                events.append(event)
                if event.type == kind:
                    return events
        raise AssertionError(f"{kind} did not come")

    async def say(self, sound):
        """Speaks in packets of 20 ms, as fast as they go, with a second of silence behind."""
        sound += bytes(48_000)
        for at in range(0, len(sound), 960):
            await self.connection.input_audio_buffer.append(audio=base64.b64encode(sound[at : at + 960]).decode())

    async def ask(self, text):
        content = [{"type": "input_text", "text": text}]
        await self.connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        await self.connection.response.create()


def of(events, kind):
    return [event for event in events if event.type == kind]


def run(conversation, **connect):
    async def main():
        connect.setdefault("model", "gpt-realtime")
        async with client(connect.pop("key", "none")).realtime.connect(**connect) as connection:
            talk = Talk(connection)
            await talk.until("session.created")
            await conversation(talk)

    asyncio.run(main())


def test_a_spoken_question_is_answered():
    async def conversation(talk):
        output = {"voice": "marin", "format": {"type": "audio/pcm", "rate": 24_000}}
        await talk.connection.session.update(
            session={"type": "realtime", "output_modalities": ["audio"], "audio": {"output": output}}
        )
        session = (await talk.until("session.updated"))[-1].session
        assert session.output_modalities == ["text"]
        await talk.say(question())
        events = await talk.until("response.done")
        started, stopped = (of(events, f"input_audio_buffer.speech_{kind}")[0] for kind in ("started", "stopped"))
        committed = of(events, "input_audio_buffer.committed")[0]
        assert started.item_id == stopped.item_id == committed.item_id
        assert committed.previous_item_id is None
        words = of(events, "conversation.item.input_audio_transcription.completed")[0]
        assert "capital of France" in words.transcript
        reply = "".join(event.delta for event in of(events, "response.output_text.delta"))
        response = events[-1].response
        assert response.status == "completed" and reply == response.output[0].content[0].text != ""
        usage = response.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.input_token_details.audio_tokens > 10
        await talk.connection.conversation.item.retrieve(item_id=words.item_id)
        item = (await talk.until("conversation.item.retrieved"))[-1].item
        assert item.content[0].transcript == words.transcript

    run(conversation)


def test_speech_interrupts_a_reply():
    async def conversation(talk):
        await talk.connection.session.update(session={"type": "realtime", "reasoning": {"effort": "minimal"}})
        await talk.until("session.updated")
        await talk.ask("Write a long poem about the sea, with many verses.")
        await talk.until("response.output_text.delta")
        await talk.say(question())
        events = await talk.until("response.done")
        assert of(events, "input_audio_buffer.speech_started")
        ended = events[-1].response
        assert (ended.status, ended.status_details.reason) == ("cancelled", "turn_detected")
        assert (await talk.until("response.done"))[-1].response.status == "completed"

    run(conversation)


def test_a_function_is_called_and_its_output_answered():
    async def conversation(talk):
        choice = {"type": "function", "name": "get_weather"}
        await talk.connection.session.update(session={"type": "realtime", "tools": [WEATHER], "tool_choice": choice})
        await talk.until("session.updated")
        await talk.ask("What is the weather in Paris?")
        events = await talk.until("response.done")
        call = of(events, "response.function_call_arguments.done")[0]
        deltas = "".join(event.delta for event in of(events, "response.function_call_arguments.delta"))
        assert deltas == call.arguments and json.loads(call.arguments)["city"] == "Paris"
        output = {"type": "function_call_output", "call_id": call.call_id, "output": '{"sky": "sunny"}'}
        await talk.connection.conversation.item.create(item=output)
        await talk.connection.response.create(response={"tool_choice": "none"})
        response = (await talk.until("response.done"))[-1].response
        assert response.output[0].content[0].text

    run(conversation)


def test_a_transcription_session_tells_words_and_answers_nothing():
    async def conversation(talk):
        session = {"type": "transcription", "audio": {"input": {"transcription": {"model": "gpt-4o-transcribe"}}}}
        await talk.connection.session.update(session=session)
        assert (await talk.until("session.updated"))[-1].session.type == "transcription"
        await talk.say(question())
        kind = "conversation.item.input_audio_transcription"
        events = await talk.until(f"{kind}.completed")
        assert "capital of France" in events[-1].transcript
        assert "".join(event.delta for event in of(events, f"{kind}.delta")) == events[-1].transcript
        assert not of(events, "response.created")

    run(conversation, extra_query={"intent": "transcription"})


def test_a_client_secret_opens_the_session_it_was_minted_for():
    async def mint():
        secret = await client().realtime.client_secrets.create(session={"type": "realtime", "instructions": "Be brief."})
        assert secret.value.startswith("ek_") and secret.session.instructions == "Be brief."
        async with client(secret.value).realtime.connect(model="any") as connection:
            assert (await connection.recv()).session.instructions == "Be brief."

    asyncio.run(mint())
