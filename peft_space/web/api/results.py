"""The endpoints that compare, score, vote, export and push."""

import os
from typing import Annotated, Literal

import gradio as gr
from pydantic import Field

from peft_space import operations
from peft_space.compat.gradio import served_folder
from peft_space.operations import Json
from peft_space.runtime.worker_pool import Workers
from peft_space.web.api.arguments import AS_IT_IS, Sampling, Turn, open_trained_run
from peft_space.web.auth import token_of


class Results:
    """What a trained run can do, and what becomes of it."""

    def __init__(self, workers: Workers):
        self._workers = workers

    def compare(
        self,
        run: str,
        prompts: Annotated[list[str], Field(min_length=1, max_length=100)],
        owner: str = "",
        system: str = "",
        sampling: Sampling = AS_IT_IS,  # type: ignore[assignment]
        history: Annotated[list[Turn], Field(max_length=100)] = [],  # noqa: B006 - it is read only
        also: Annotated[list[str], Field(max_length=8)] = [],  # noqa: B006 - it is read only
    ) -> Json:
        """Let base and adapter answer the same prompts, and say whether the comparison was fair.

        Args:
            run: the id that /start returned.
            prompts: what to ask, up to 100 texts.
            owner: the secret that /start returned.
            system: a system message before each prompt.
            sampling: any of max_new_tokens, temperature, top_p and seed; without it the likeliest token is taken always.
            history: the turns before, {"prompt", "base", "adapter"} each, as earlier calls returned them; each column goes on with its own.
            also: what else answers: checkpoints of the run ("checkpoint-40"), or ids of other runs of the same owner on the same base.
        """
        more = [
            one if one.startswith("checkpoint-") else open_trained_run(one, owner) for one in also
        ]
        given = {
            "prompts": prompts,
            "system": system,
            "sampling": sampling,
            "history": [dict(turn) for turn in history],
            "also": more,
        }
        return self._workers.call("compare", run=open_trained_run(run, owner), **given)

    def evaluate(self, run: str, owner: str = "") -> Json:
        """Score base and adapter on the held-out rows. `more` says whether to call again: on ZeroGPU a call scores for one slice.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return {"more": False} | self._workers.call("evaluate", run=open_trained_run(run, owner))

    def pairs(
        self,
        run: str,
        owner: str = "",
        prompts: Annotated[list[str], Field(max_length=100)] = [],  # noqa: B006 - it is read only
        count: Annotated[int, Field(ge=1, le=200)] = 10,
        system: str = "",
        sampling: Sampling = AS_IT_IS,  # type: ignore[assignment]
        seed: int = 0,
    ) -> Json:
        """Begin a blind vote: pairs of answers without their columns, in random order and on random sides. Votes before are forgotten.

        `more` says whether to call again with the same arguments: on ZeroGPU a call answers for one slice.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            prompts: what to ask; without them, held-out rows.
            count: how many held-out rows.
            system: a system message before each of the prompts.
            sampling: as /compare takes it.
            seed: of the order and the sides.
        """
        given = {
            "prompts": prompts or None,
            "count": count,
            "system": system,
            "sampling": sampling,
            "seed": seed,
        }
        return {"more": False} | self._workers.call(
            "vote_pairs", run=open_trained_run(run, owner), **given
        )

    def vote(self, run: str, pair: str, choice: str, owner: str = "") -> Json:
        """Keep a vote on a pair, and say how many are left.

        Args:
            run: the id that /start returned.
            pair: which one, as /pairs numbered it.
            choice: "left", "right", or "same".
            owner: the secret that /start returned.
        """
        return operations.vote(open_trained_run(run, owner), pair, choice)

    def votes(self, run: str, owner: str = "") -> Json:
        """Say how the blind vote stands, and list the votes.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return operations.vote_results(open_trained_run(run, owner))

    def export(
        self,
        run: str,
        owner: str = "",
        target: Literal["adapter", "merged", "gguf", "ollama"] = "adapter",
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        merge_into: Literal["", "full", "dequantized"] = "",
        insist: bool = False,
        numbers: Literal["f32", "f16", "q8_0"] = "f16",
        apart: bool = False,
        system: str = "",
    ) -> gr.FileData:
        """The adapter, or the model it is merged into, as a .zip file with its proof; the client downloads it and returns the path.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
            target: "adapter", "merged" for engines that take no adapter, "gguf" for llama.cpp, or "ollama", which is that with a Modelfile.
            dtype: of the merged model.
            merge_into: where the base was quantized in training: "full" precision, or "dequantized", the numbers that the adapter was trained on;
                empty is the latter.
            insist: keep it also where it is proven not to answer as the adapter does, which is refused otherwise.
            numbers: how weights are written in GGUF: in 32, 16 or 8 bits.
            apart: base and adapter as GGUF files of their own, instead of one of the merged model.
            system: a system message that Ollama gives conversations without one.
        """
        opened, folder = open_trained_run(run, owner), served_folder()
        wanted = {
            "target": target,
            "dtype": dtype,
            "merge_into": merge_into or None,
            "insist": insist,
        }
        wanted["gguf"] = {"numbers": numbers, "apart": apart, "system": system}
        made = self._workers.call("export", run=opened, out=folder, as_zip=True, **wanted)
        return gr.FileData(path=made["path"], orig_name=os.path.basename(made["path"]))

    def card(self, run: str, owner: str = "") -> Json:
        """The model card as /push would push it now, to read and to edit.

        Args:
            run: the id that /start returned.
            owner: the secret that /start returned.
        """
        return self._workers.call("model_card", run=open_trained_run(run, owner))

    def push(
        self,
        run: str,
        repo: str,
        token: str = "",
        public: bool = False,
        owner: str = "",
        card: str = "",
        target: Literal["adapter", "merged", "gguf", "ollama"] = "adapter",
        dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
        merge_into: Literal["", "full", "dequantized"] = "",
        insist: bool = False,
        numbers: Literal["f32", "f16", "q8_0"] = "f16",
        apart: bool = False,
        signed_in: gr.OAuthToken | None = None,
    ) -> Json:
        """Push the adapter, or what /export makes of it, with its proof, to the Hugging Face Hub and return its address.

        Args:
            run: the id that /start returned.
            repo: OWNER/NAME. A new one is made; to one that exists a pull request is opened.
            token: a Hub token with write access, used for this push and forgotten; without it, the client's `oauth_token`.
            public: everybody can see it; otherwise only you can.
            owner: the secret that /start returned.
            card: an edited card, in place of the one that /card shows.
            target: as /export takes it, and so dtype, merge_into, insist, numbers and apart.
        """
        wanted = {
            "repo": repo.strip(),
            "token": token_of(token, signed_in),
            "public": public,
            "card": card or None,
        }
        wanted["export"] = {
            "target": target,
            "dtype": dtype,
            "merge_into": merge_into or None,
            "insist": insist,
        }
        wanted["export"]["gguf"] = {"numbers": numbers, "apart": apart}
        return self._workers.call("push", run=open_trained_run(run, owner), **wanted)
