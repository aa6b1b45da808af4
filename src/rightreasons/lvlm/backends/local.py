"""A vision-language model from a folder, in this process: nothing leaves the machine, nothing is downloaded, and no code of the folder is run."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rightreasons.errors import ConfigError, LVLMRejected, LVLMTooBig, LVLMUnavailable
from rightreasons.lvlm.protocol import Answer, Request, Usage
from rightreasons.lvlm.wire.chat import chat_message, decode_picture, read_content

# Weights are read from safetensors only, because other formats can run code when they are opened.
_SAFELY: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class Local:
    """A transformers image-text-to-text model. It decodes greedily, and if a schema is given, only tokens that the schema allows."""

    simulated = False
    concurrency = (1, 1)
    address = None

    def __init__(self, folder: str, root: Path = Path()) -> None:
        path = root / folder
        if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
            raise ConfigError(
                f"[critic] lvlm = 'local:{folder}' is not a model; expected a folder with config.json, *.safetensors, and the files of its processor"
            )
        self.name, self._folder, self._path = f"local:{folder}", Path(folder), path
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None

    def check(self) -> None:
        """Checks by the configuration file alone that it is a model that takes pictures."""
        from transformers import AutoConfig, AutoModelForImageTextToText

        try:
            config = AutoConfig.from_pretrained(self._path, **_SAFELY)
        except (OSError, ValueError, KeyError) as error:
            raise LVLMUnavailable(f"{self.name} cannot be read ({error}): is it the folder of a transformers model?") from error
        if type(config) not in AutoModelForImageTextToText._model_mapping:
            raise LVLMUnavailable(f"{self.name} is a {config.model_type!r}, which does not take pictures; expected an image-text-to-text model")

    def body(self, request: Request) -> dict[str, Any]:
        """A chat with one message, and the answer's ``schema`` if it has one."""
        body: dict[str, Any] = {"model": str(self._folder), "messages": [chat_message(request)], "max_tokens": request.max_tokens}
        return body if request.schema is None else body | {"schema": dict(request.schema)}

    def send(self, body: dict[str, Any]) -> str:
        """The model's answer, as JSON with the numbers of input and output tokens."""
        import jinja2
        import torch

        with self._lock:
            self._loaded = self._loaded or _load(self._path, self.name)
            try:
                return self._loaded.generate(body, self.name)
            except torch.OutOfMemoryError as error:
                raise LVLMTooBig(f"{self.name} runs out of memory on this request: {str(error)[:200]}") from error
            except (ValueError, TypeError, RuntimeError, jinja2.TemplateError) as error:
                raise LVLMRejected(f"{self.name} cannot take this request: {str(error)[:300]}") from error

    def parse(self, raw: str) -> Answer:
        """The text, with the outcome "truncated" if it was cut off."""
        return read_local(raw)

    def close(self) -> None:
        """Nothing is connected."""


def read_local(raw: str) -> Answer:
    """Parses a raw answer of any local model."""
    said = json.loads(raw)
    text, usage = read_content(said["text"]), Usage(said["input_tokens"], said["output_tokens"])
    if not said["ended"]:
        return Answer(text, problem="truncated: the answer was cut off at its longest", outcome="truncated", usage=usage)
    return Answer(text, usage=usage)


@dataclass
class _Loaded:
    """A model with its processor and the compiler that turns schemas into grammars over its tokens."""

    model: Any
    processor: Any
    compiler: Any
    ends: set[int]
    longest: int | None

    def generate(self, body: dict[str, Any], name: str) -> str:
        import torch
        from xgrammar.contrib.hf import LogitsProcessor

        parts = [part if part["type"] == "text" else {"type": "image", "image": decode_picture(part)} for part in body["messages"][0]["content"]]
        inputs = self.processor.apply_chat_template(
            [{"role": "user", "content": parts}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        ).to(self.model.device, dtype=self.model.dtype)
        went_in = inputs["input_ids"].shape[1]
        room = body["max_tokens"] if self.longest is None else min(body["max_tokens"], self.longest - went_in)
        if room < 1:
            raise LVLMTooBig(f"{name} takes at most {self.longest} tokens, and this request has {went_in}")
        schema = body.get("schema")
        grammar = [] if schema is None else [LogitsProcessor(self.compiler.compile_json_schema(json.dumps(schema), any_whitespace=False))]
        with torch.inference_mode():
            output = self.model.generate(
                **inputs, max_new_tokens=room, do_sample=False, temperature=None, top_p=None, top_k=None, logits_processor=grammar
            )
        tokens = output[0, went_in:].tolist()
        text = self.processor.tokenizer.decode(tokens, skip_special_tokens=True)
        ended = bool(tokens) and tokens[-1] in self.ends
        return json.dumps({"text": text, "ended": ended, "input_tokens": went_in, "output_tokens": len(tokens)}, ensure_ascii=False)


def _load(path: Path, name: str) -> _Loaded:
    import xgrammar
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from rightreasons.common.device import best_device

    try:
        processor = AutoProcessor.from_pretrained(path, **_SAFELY)
        model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype="auto", use_safetensors=True, **_SAFELY)
        model = model.to(best_device()).eval()
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise LVLMUnavailable(f"{name} cannot be loaded: {str(error)[:300]}") from error
    text = model.config.get_text_config()
    said = model.generation_config.eos_token_id
    ends = {processor.tokenizer.eos_token_id, *(said if isinstance(said, list) else [said])} - {None}
    tokens = xgrammar.TokenizerInfo.from_huggingface(processor.tokenizer, vocab_size=text.vocab_size, stop_token_ids=sorted(ends))
    return _Loaded(model, processor, xgrammar.GrammarCompiler(tokens), ends, getattr(text, "max_position_embeddings", None))
