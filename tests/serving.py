"""A language model behind OpenAI's protocol on this machine, for tests: real tokens, real log-probabilities, faults on demand."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from stillroom._compat import package

FILLER = "Twelve small boats left the harbour before dawn, and nobody on the pier could say who had sent them out to sea."


def save_model(folder: Path) -> Path:
    """A Llama of two layers as it is drawn, and a byte-level BPE tokenizer trained on Python's own help, in a folder."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.train_from_iterator([FILLER, *list(topics.values())[:20]], trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<end>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    torch.manual_seed(0)
    transformers = package("transformers")
    shape = transformers.LlamaConfig(vocab_size=bpe.get_vocab_size(), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                     num_attention_heads=2, max_position_embeddings=1024, initializer_range=0.2,
                                     bos_token_id=None, eos_token_id=0)
    transformers.LlamaForCausalLM(shape).save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<end>").save_pretrained(folder)
    return folder


class LanguageServer:
    """The model of a folder at `url`, from `with` to its end.

    faults   what befalls the next requests, in turn: None, "busy:SECONDS" (429), "broken" (500), "hang", "cut", "garbage",
             "empty" (a reply without choices), "echo" (an answer that repeats the key), "denied" (401 that repeats the key),
             "moved" (a redirect), or a status number
    asked    bodies of all requests, in order; keys: their Authorization; at: when they came
    """

    def __init__(self, folder: Path):
        transformers = package("transformers")
        self.net = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        self.words = transformers.AutoTokenizer.from_pretrained(folder)
        self.lock = threading.Lock()
        self.under_way, self.gone = 0, threading.Event()
        self.clear()

    def clear(self):
        """As new, when the last of the answers that are under way has been sent, or nobody waits for it."""
        self.gone.set()
        until = time.monotonic() + 20
        while self.under_way and time.monotonic() < until:
            time.sleep(0.005)
        self.faults, self.asked, self.keys, self.at, self.delay, self.most = [], [], [], [], 0.0, 0
        self.gone = threading.Event()

    def __enter__(self):
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.gone.set()
        self.http.shutdown()
        self.http.server_close()

    @torch.no_grad()
    def generate(self, text: str, body: dict) -> tuple[str, str, list, int]:
        """Text, why it ended, (token, its log-probability, the likeliest) of each step, tokens in all. A token at a time."""
        ids, said, steps, finish = self.words(text)["input_ids"], [], [], "length"
        near = body.get("top_logprobs", 0) if body.get("logprobs") is True else body.get("logprobs", 0)
        dice = torch.Generator().manual_seed(body.get("seed", 0))
        for _ in range(body["max_tokens"]):
            logs = self.net(torch.tensor([ids + said])).logits[0, -1].log_softmax(-1)
            warm = body.get("temperature", 0)
            pick = int(torch.multinomial((logs / warm).softmax(-1), 1, generator=dice) if warm else logs.argmax())
            if pick == self.words.eos_token_id:
                finish = "stop"
                break
            top = logs.topk(near) if near else ([], [])
            name = self.words.convert_ids_to_tokens           # of which no two are the same
            steps.append((name(pick), float(logs[pick]), [(name(int(i)), float(p)) for p, i in zip(*top)]))
            said.append(pick)
        return self.words.decode(said), finish, steps, len(ids) + len(said)


def _handler(server: LanguageServer):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_):
            pass

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with server.lock:
                number = len(server.asked)
                server.asked.append(body)
                server.keys.append(self.headers.get("Authorization"))
                server.at.append(time.monotonic())
                server.under_way += 1
                server.most = max(server.most, server.under_way)
                fault = server.faults[number] if number < len(server.faults) else None
            try:
                time.sleep(server.delay)
                self.answer(body, fault)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                with server.lock:
                    server.under_way -= 1

        def answer(self, body, fault):
            if fault == "hang":
                server.gone.wait(5)
                self.close_connection = True
            elif fault == "denied":
                self.reply(401, {"error": {"message": f"Incorrect API key provided: {self.headers.get('Authorization')}"}})
            elif fault == "echo":
                self.reply(200, {"choices": [{"message": {"content": f"You are {self.headers.get('Authorization')}."}}]})
            elif fault == "moved":
                self.reply(302, {}, Location="http://127.0.0.1:9/elsewhere")
            elif isinstance(fault, int):
                self.reply(fault, {"error": {"message": f"fault {fault} for {self.headers.get('Authorization')}"}})
            elif fault == "broken":
                self.reply(500, {"error": {"message": "the machine is on fire"}})
            elif fault and fault.startswith("busy:"):
                self.reply(429, {"error": {"message": "too many requests"}}, **{"Retry-After": fault[5:]})
            else:
                self.reply(200, self.content(body), cut=fault == "cut", garbage=fault == "garbage", empty=fault == "empty")

        def content(self, body):
            chat = self.path.endswith("/v1/chat/completions")
            if not chat and not self.path.endswith("/v1/completions"):
                raise AssertionError(self.path)
            if (body.get("top_logprobs") or 0) > 20:
                return {"error": {"message": "top_logprobs must be at most 20"}, "status": 400}
            text = "".join(f"<{m['role']}>{m['content']}\n" for m in body["messages"]) if chat else body["prompt"]
            with server.lock:
                said, finish, steps, used = server.generate(text, body)
            if chat:
                told = {"content": [{"token": t, "logprob": p, "top_logprobs": [{"token": u, "logprob": q} for u, q in near]}
                                    for t, p, near in steps]}
                choice = {"message": {"role": "assistant", "content": said}}
            else:
                tokens, logs, near = ([s[n] for s in steps] for n in range(3))
                told = {"tokens": tokens, "token_logprobs": logs, "top_logprobs": [dict(n) for n in near]}
                choice = {"text": said}
            choice["logprobs"] = told if body.get("logprobs") else None
            return {"choices": [{"index": 0, "finish_reason": finish, **choice}], "usage": {"total_tokens": used}}

        def reply(self, status, content, *, cut=False, garbage=False, empty=False, **headers):
            status = content.pop("status", status)
            text = b"{]" if garbage else b'{"choices": []}' if empty else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(text[: len(text) // 2] if cut else text)
            self.close_connection = self.close_connection or cut

    return Handler
