"""The openai package, as it is published, against Hearken with nano."""

import base64
import os
import pathlib

import openai
import pytest

ROOT = pathlib.Path(__file__).parents[3]
QUESTION = ROOT / "tests/browser/question.wav"  # "What is the capital of France?"
CLIP = ROOT / "tests/audio/sense_and_sensibility_01_austen_64kb-0920.wav"
WORDS = "married a more amiable woman"
CLOCK = {
    "type": "function",
    "function": {"name": "clock", "description": "Tells the time.", "parameters": {"type": "object", "properties": {}}},
}


@pytest.fixture(scope="module")
def client():
    return openai.OpenAI(base_url=os.environ["HEARKEN_URL"] + "/v1", api_key="none", max_retries=0, timeout=120)


def spoken():
    data = base64.b64encode(QUESTION.read_bytes()).decode()
    return [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}]}]


def test_a_spoken_question_is_answered(client):
    answer = client.chat.completions.create(model="nano", messages=spoken(), temperature=0)
    choice = answer.choices[0]
    assert "Paris" in choice.message.content
    assert "capital of France" in choice.message.reasoning_content
    assert choice.finish_reason == "stop"
    assert answer.usage.prompt_tokens_details.audio_tokens > 10
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def test_the_answer_comes_in_chunks(client):
    stream = client.chat.completions.create(
        model="nano", messages=spoken(), temperature=0, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "Paris" in "".join(delta.content or "" for delta in deltas)
    reasoning = [getattr(delta, "reasoning_content", None) for delta in deltas]
    assert "capital of France" in "".join(filter(None, reasoning)) and len(list(filter(None, reasoning))) > 3
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.total_tokens > 20


def test_the_helper_that_joins_chunks_finds_them_whole(client):
    with client.chat.completions.stream(model="nano", messages=spoken(), temperature=0) as stream:
        for _ in stream:
            pass
        assert "Paris" in stream.get_final_completion().choices[0].message.content


def test_limits_stops_and_effort(client):
    ask = lambda **how: client.chat.completions.create(
        model="nano", messages=[{"role": "user", "content": "Count from one to twenty in words."}], temperature=0, **how
    )
    short = ask(max_tokens=4, reasoning_effort="none")
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 4)
    assert not hasattr(short.choices[0].message, "reasoning_content")
    both = ask(max_completion_tokens=12)
    assert both.usage.completion_tokens <= 12
    whole = ask(reasoning_effort="none", max_tokens=40)
    word = whole.choices[0].message.content.split()[1]
    stopped = ask(reasoning_effort="none", max_tokens=40, stop=[word])
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.choices[0].message.content == whole.choices[0].message.content.split(word)[0]


def test_a_function_is_called_and_its_output_is_read(client):
    """Whether nano calls is its own affair; what it is told of the call is ours."""
    question = {"role": "user", "content": "What time is it?"}
    first = client.chat.completions.create(
        model="nano", messages=[question], tools=[CLOCK], tool_choice="auto", temperature=0, reasoning_effort="none"
    )
    message = first.choices[0].message
    if message.tool_calls:
        call = message.tool_calls[0]
        assert first.choices[0].finish_reason == "tool_calls" and call.function.name
        history = [question, message.model_dump(exclude_none=True)]
    else:
        call_wire = {"id": "call_1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
        history = [question, {"role": "assistant", "tool_calls": [call_wire]}]
    call_id = history[1]["tool_calls"][0]["id"]
    history.append({"role": "tool", "tool_call_id": call_id, "content": "It is a quarter past nine."})
    answer = client.chat.completions.create(
        model="nano", messages=history, tools=[CLOCK], tool_choice="none", temperature=0, reasoning_effort="none"
    )
    assert answer.choices[0].message.content


@pytest.mark.parametrize("form", ["json", "text", "verbose_json", "srt", "vtt"])
def test_a_clip_is_transcribed(client, form):
    with CLIP.open("rb") as file:
        answer = client.audio.transcriptions.create(model="whisper-1", file=file, response_format=form)
    text = answer if isinstance(answer, str) else answer.text
    assert WORDS in text
    if form == "verbose_json":
        assert answer.segments[0].start < 1 and answer.segments[-1].end <= answer.duration
    if form == "json":
        assert answer.usage.type == "duration"


def test_a_transcription_is_streamed(client):
    with CLIP.open("rb") as file:
        stream = client.audio.transcriptions.create(model="whisper-1", file=file, stream=True)
        events = list(stream)
    assert [event.type for event in events[-1:]] == ["transcript.text.done"]
    deltas = "".join(event.delta for event in events if event.type == "transcript.text.delta")
    assert deltas == events[-1].text and WORDS in deltas


def test_models_and_errors(client):
    assert [model.id for model in client.models.list()] == ["nano"]
    assert client.models.retrieve("nano").object == "model"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("other")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="nano", messages=[])
    assert (refused.value.code, refused.value.param) == ("invalid_value", "messages")
    with pytest.raises(openai.BadRequestError) as unheard:
        client.audio.transcriptions.create(model="whisper-1", file=("a.wav", b"no sound"))
    assert unheard.value.code == "invalid_audio"
