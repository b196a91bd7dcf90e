"""Pipecat's OpenAI realtime service, as it is published, against Hearken with nano."""

import asyncio
import contextlib
import os

from pipecat.adapters.llm.schemas.function_schema import FunctionSchema
from pipecat.adapters.llm.schemas.tools_schema import ToolsSchema
from pipecat.frames.frames import (
    ErrorFrame,
    FunctionCallResultFrame,
    InputAudioRawFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMRunFrame,
    LLMTextFrame,
    TranscriptionFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.services.openai.realtime import events
from pipecat.services.openai.realtime.llm import OpenAIRealtimeLLMService
from pipecat.workers.runner import WorkerRunner
from sound import question

URL = os.environ["HEARKEN_URL"].replace("http", "ws") + "/v1/realtime"
PATIENCE = 120
WATCHED = (ErrorFrame, FunctionCallResultFrame, LLMFullResponseStartFrame, LLMFullResponseEndFrame, LLMTextFrame, TranscriptionFrame)


class Watcher(FrameProcessor):
    """Passes everything on, and keeps what it saw."""

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    async def process_frame(self, frame, direction):
        await super().process_frame(frame, direction)
        if isinstance(frame, WATCHED):
            self.seen.put_nowait(frame)
        await self.push_frame(frame, direction)


class Talk:
    def __init__(self, worker, seen):
        self.worker, self.seen = worker, seen

    async def until(self, wanted):
        """All frames up to the first that is `wanted`."""
        frames = []
        while True:
            frame = await self.seen.get()
            assert not isinstance(frame, ErrorFrame), frame
            frames.append(frame)
            if wanted(frame):
                return frames

    async def reply(self):
        frames = await self.until(lambda frame: isinstance(frame, LLMFullResponseEndFrame))
        return "".join(frame.text for frame in frames if isinstance(frame, LLMTextFrame))

    async def say(self):
        """As a microphone does, in real time: who speaks faster is interrupted by itself."""
        sound = question(16_000) + bytes(48_000)
        for at in range(0, len(sound), 640):
            frame = InputAudioRawFrame(audio=sound[at : at + 640], sample_rate=16_000, num_channels=1)
            await self.worker.queue_frame(frame)
            await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def talking(first="Hello!", tools=(), handlers=()):
    properties = events.SessionProperties(
        output_modalities=["text"],
        audio=events.AudioConfiguration(input=events.AudioInput(transcription=events.InputAudioTranscription())),
    )
    service = OpenAIRealtimeLLMService(
        api_key="none",
        base_url=URL,
        settings=OpenAIRealtimeLLMService.Settings(system_instruction="You are kind.", session_properties=properties),
    )
    for name, handler in handlers:
        service.register_function(name, handler)
    context = LLMContext([{"role": "user", "content": first}], tools=ToolsSchema(standard_tools=list(tools)))
    pair = LLMContextAggregatorPair(context)
    seen = asyncio.Queue()
    pipeline = Pipeline([pair.user(), Watcher(seen), service, Watcher(seen), pair.assistant()])
    worker = PipelineWorker(pipeline, cancel_on_idle_timeout=False, enable_rtvi=False)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    running = asyncio.create_task(runner.run())
    try:
        async with asyncio.timeout(PATIENCE):
            talk = Talk(worker, seen)
            await worker.queue_frame(LLMRunFrame())
            yield talk
    finally:
        await worker.cancel()
        await running


def test_a_spoken_question_is_answered():
    async def main():
        async with talking() as talk:
            assert await talk.reply()
            await talk.say()
            words = (await talk.until(lambda frame: isinstance(frame, TranscriptionFrame)))[-1]
            assert "capital of France" in words.text
            assert await talk.reply()

    asyncio.run(main())


def test_speech_interrupts_a_reply():
    async def main():
        async with talking("Write a long poem about the sea, with many verses.") as talk:
            await talk.until(lambda frame: isinstance(frame, LLMTextFrame))
            await talk.say()
            cut, answer = await talk.reply(), await talk.reply()
            assert cut and answer

    asyncio.run(main())


def test_a_function_is_called_and_its_output_answered():
    asked = []

    async def get_weather(params):
        asked.append(params.arguments)
        await params.result_callback({"sky": "sunny"})

    async def main():
        weather = FunctionSchema(
            name="get_weather",
            description="Get the current weather in a city",
            properties={"city": {"type": "string"}},
            required=["city"],
        )
        first = "Tell me the weather in Tokyo."
        async with talking(first, [weather], [("get_weather", get_weather)]) as talk:
            result = (await talk.until(lambda frame: isinstance(frame, FunctionCallResultFrame)))[-1]
            assert (result.function_name, result.result) == ("get_weather", {"sky": "sunny"})
            await talk.until(lambda frame: isinstance(frame, LLMTextFrame))
            assert asked == [{"city": "Tokyo"}]

    asyncio.run(main())
