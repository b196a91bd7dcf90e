"""LiveKit Agents' OpenAI plugins, as they are published, against Hearken with nano."""

import asyncio
import contextlib
import json
import os

import aiohttp
from livekit import rtc
from livekit.agents import function_tool, llm, stt
from livekit.plugins import openai
from livekit.plugins.openai.realtime import RealtimeModel
from sound import question

BASE = os.environ["HEARKEN_URL"] + "/v1"
PATIENCE = 120


def frames(seconds_behind=1):
    sound = question() + bytes(48_000 * seconds_behind)
    for at in range(0, len(sound) - 959, 960):
        yield rtc.AudioFrame(sound[at : at + 960], sample_rate=24_000, num_channels=1, samples_per_channel=480)


class Talk:
    """A session of the plugin, and what it told."""

    def __init__(self, session):
        self.session = session
        self.generations, self.words, self.errors = asyncio.Queue(), asyncio.Queue(), []
        session.on("generation_created", self.generations.put_nowait)
        session.on("input_audio_transcription_completed", self.words.put_nowait)
        session.on("error", self.errors.append)

    def say(self):
        for frame in frames():
            self.session.push_audio(frame)

    async def final_words(self):
        while True:
            words = await self.words.get()
            if words.is_final:
                return words.transcript


async def text_of(generation, on_text=lambda: None):
    said = ""
    async for message in generation.message_stream:
        async for piece in message.text_stream:
            said += piece
            on_text()
    return said


@contextlib.asynccontextmanager
async def talking(**options):
    async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE):
        model = RealtimeModel(base_url=BASE, api_key="none", modalities=["text"], http_session=http, **options)
        session = model.session()
        talk = Talk(session)
        try:
            yield talk
        finally:
            await session.aclose()
            await model.aclose()
        assert talk.errors == []


def test_a_spoken_question_is_answered():
    async def main():
        async with talking() as talk:
            await talk.session.update_instructions("Be brief.")
            talk.say()
            generation = await talk.generations.get()
            assert await text_of(generation)
            assert "capital of France" in await talk.final_words()
            items = talk.session.chat_ctx.items
            assert [item.role for item in items] == ["user", "assistant"]

    asyncio.run(main())


def test_speech_interrupts_a_reply():
    async def main():
        async with talking() as talk:
            begun = asyncio.Event()
            generation = await talk.session.generate_reply(instructions="Write a long poem about the sea, with many verses.")
            assert generation.user_initiated
            reading = asyncio.create_task(text_of(generation, begun.set))
            await begun.wait()
            talk.say()
            cut = await reading
            assert talk.generations.get_nowait() is generation
            answer = await talk.generations.get()
            assert not answer.user_initiated and answer.response_id != generation.response_id
            assert cut and await text_of(answer)

    asyncio.run(main())


def test_a_function_is_called_and_its_output_answered():
    @function_tool
    async def get_weather(city: str) -> str:
        """Get the current weather in a city."""
        return "sunny"

    async def main():
        async with talking() as talk:
            await talk.session.update_tools([get_weather])
            context = llm.ChatContext.empty()
            context.add_message(role="user", content="What is the weather in Paris?")
            await talk.session.update_chat_ctx(context)
            generation = await talk.session.generate_reply(tool_choice="required")
            calls = [call async for call in generation.function_stream]
            assert [(call.name, json.loads(call.arguments)) for call in calls] == [("get_weather", {"city": "Paris"})]
            context = talk.session.chat_ctx.copy()
            output = llm.FunctionCallOutput(call_id=calls[0].call_id, name="get_weather", output="sunny", is_error=False)
            context.items.append(output)
            await talk.session.update_chat_ctx(context)
            assert await text_of(await talk.session.generate_reply(tool_choice="none"))

    asyncio.run(main())


def test_speech_recognition_over_the_realtime_api():
    async def main():
        async with aiohttp.ClientSession() as http, asyncio.timeout(PATIENCE):
            recogniser = openai.STT(base_url=BASE, api_key="none", model="gpt-4o-mini-transcribe", use_realtime=True)
            recogniser._session = http
            stream = recogniser.stream()
            for frame in frames():
                stream.push_frame(frame)
            kinds = []
            async for event in stream:
                kinds.append(event.type)
                if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                    assert "capital of France" in event.alternatives[0].text
                    break
            assert stt.SpeechEventType.START_OF_SPEECH in kinds
            await stream.aclose()
            await recogniser.aclose()

    asyncio.run(main())
