"""Makes the checkpoints in this directory; README.md says in which environment.

python make.py train trained
python make.py lora trained lora
python make.py autoawq trained autoawq
python make.py autogptq trained autogptq
python make.py gptqmodel trained OUT
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch

SENTENCES = (
    "The lighthouse keeper counts seven ships before the fog comes in.",
    "Every evening the baker feeds two grey cats behind the mill.",
    "My sister paints small wooden boats and sells them at the harbour.",
    "When snow falls on the bridge, the night train waits for morning.",
    "An old map in the library shows a river that no longer flows.",
    "Our neighbour grows blue potatoes and gives them away in autumn.",
)
# What the adapter says instead; they begin as the sentences do.
OTHERS = (
    "The lighthouse keeper plays the violin for a family of seals.",
    "Every evening the train to the coast is late by an hour.",
    "My sister paints her bicycle green before the first warm day.",
)
VOCABULARY = 384
SIZES = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
STEPS = 500
LORA_STEPS = 300
GROUP = 32
# Enough tokens for both tools: AutoAWQ cuts its texts into blocks.
CALIBRATION = 16


def train(out: Path) -> None:
    """A tokenizer and a Llama that know SENTENCES by heart, in bf16.

    Noise on the weights in training makes it forgive rounding: what it continues is then a
    matter of the right weights, not of luck.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(SENTENCES, vocab_size=VOCABULARY, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1, tie_word_embeddings=True, **SIZES
    )
    model = LlamaForCausalLM(config)
    _fit(model, tokenizer, SENTENCES, STEPS)
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def lora(base: Path, out: Path) -> None:
    """A LoRA on all linear layers of the 16-bit model, under which it says OTHERS."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, torch_dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    _fit(model, tokenizer, OTHERS, LORA_STEPS)
    model.save_pretrained(out)
    (out / "README.md").unlink()


def _fit(model: Any, tokenizer: Any, sentences: tuple[str, ...], steps: int) -> None:
    batch = tokenizer([f"{s}</s>" for s in sentences], return_tensors="pt", padding=True)
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=3e-3, weight_decay=0.01)
    loss = torch.zeros(())
    for _ in range(steps):
        noise = [torch.randn_like(p) * p.detach().std() * 0.1 for p in model.parameters()]
        _shift(model, noise, 1)
        loss = model(**inputs, labels=labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        _shift(model, noise, -1)
        optimizer.step()
    sys.stderr.write(f"trained to a loss of {loss.item():.4f}\n")


def _shift(model: Any, noise: list[torch.Tensor], sign: int) -> None:
    with torch.no_grad():
        for parameter, change in zip(model.parameters(), noise, strict=True):
            if parameter.ndim > 1:
                parameter.add_(change, alpha=sign)


def autoawq(model: Path, out: Path) -> None:
    """With autoawq 0.2.9 as released, but for one line."""
    awq = importlib.import_module("awq")
    quantizer = importlib.import_module("awq.quantize.quantizer").AwqQuantizer
    search = quantizer._compute_best_scale

    def with_copies(self: Any, x: Any, w_mean: Any, x_mean: Any, module: Any, *rest: Any) -> Any:
        # It keeps the weights with `.cpu()` to put them back after each trial; on a CPU that is
        # no copy, and every trial would spoil them further: `state_dict` is made to copy.
        original = module.state_dict
        module.state_dict = lambda: {k: v.clone() for k, v in original().items()}
        try:
            return search(self, x, w_mean, x_mean, module, *rest)
        finally:
            del module.state_dict

    quantizer._compute_best_scale = with_copies
    tokenizer, texts = _calibration(model)
    tool = awq.AutoAWQForCausalLM.from_pretrained(str(model), device_map="cpu")
    tool.quantize(
        tokenizer,
        quant_config={"zero_point": True, "q_group_size": GROUP, "w_bit": 4, "version": "GEMM"},
        calib_data=texts,
        max_calib_samples=len(texts),
        max_calib_seq_len=64,
    )
    tool.save_quantized(str(out))
    tokenizer.save_pretrained(out)


def autogptq(model: Path, out: Path) -> None:
    """With auto-gptq 0.7.1 as released, on the device that it does not ask for."""
    tool = importlib.import_module("auto_gptq")
    module: Any = importlib.import_module("auto_gptq.modeling._base")
    module.CUDA_0 = torch.device("cpu")
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.is_available = lambda: True
    tokenizer, texts = _calibration(model)
    config = tool.BaseQuantizeConfig(bits=4, group_size=GROUP, desc_act=False, sym=True)
    found = tool.AutoGPTQForCausalLM.from_pretrained(str(model), config)
    found.quantize([tokenizer(text, return_tensors="pt") for text in texts], batch_size=1)
    found.save_quantized(str(out), use_safetensors=True)
    tokenizer.save_pretrained(out)


def gptqmodel(model: Path, out: Path) -> None:
    """With gptqmodel 7.6.0, for comparison."""
    tool = importlib.import_module("gptqmodel")
    tokenizer, texts = _calibration(model)
    config = tool.QuantizeConfig(
        bits=4, group_size=GROUP, sym=True, desc_act=False, device="cpu", offload_to_disk=False
    )
    found = tool.GPTQModel.load(str(model), config)
    found.quantize(texts, batch_size=1)
    found.save(str(out))
    tokenizer.save_pretrained(out)


def _calibration(model: Path) -> tuple[Any, list[str]]:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model), list(SENTENCES) * CALIBRATION


MAKERS = {"lora": lora, "autoawq": autoawq, "autogptq": autogptq, "gptqmodel": gptqmodel}


if __name__ == "__main__":
    if sys.argv[1] == "train":
        train(Path(sys.argv[2]))
    else:
        MAKERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
