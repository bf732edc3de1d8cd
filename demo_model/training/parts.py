"""The parts of the small SDXL: tokenizer, text encoders, UNet and scheduler, untrained.

Topology as in SDXL wherever names depend on it (three levels of DownBlock2D,
CrossAttnDownBlock2D, CrossAttnDownBlock2D; two layers a block; linear projections; text+time
conditioning; two text encoders, the second with a projection); only widths and depths are small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from demo_model.common import BACKGROUNDS, LIMITS, MODEL, SIZE, TEMPLATES, TRIGGER, available_names

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
TOKENS = 77
TIME_WIDTH = 32  # of the embedding of each of the six time ids


@dataclass
class Parts:
    """What is trained together, and the tokenizer."""

    tokenizer: CLIPTokenizer
    text_encoder: CLIPTextModel
    text_encoder_2: CLIPTextModelWithProjection
    unet: UNet2DConditionModel

    def modules(self) -> dict[str, torch.nn.Module]:
        """The trained modules by their names in a pipeline."""
        return {
            "text_encoder": self.text_encoder,
            "text_encoder_2": self.text_encoder_2,
            "unet": self.unet,
        }


def build_tokenizer(folder: Path) -> CLIPTokenizer:
    """A byte-level BPE tokenizer in which each word of the captions is one token.

    Both forms of each byte (inside and at the end of a word) are in the vocabulary, so that any
    text can be encoded without an unknown token. Written to `folder`/tokenizer.json.
    """
    split = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(split), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    learner.pre_tokenizer = words
    texts = [*available_names(), *BACKGROUNDS, *TEMPLATES, TRIGGER, "line art black and sepia"]
    trainer = BpeTrainer(
        vocab_size=8000, initial_alphabet=letters, end_of_word_suffix=WORD_END, show_progress=False
    )
    learner.train_from_iterator([text.lower() for text in texts], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    alphabet = sorted(letters)
    vocabulary = [START, END, *alphabet, *(letter + WORD_END for letter in alphabet)]
    vocabulary += ["".join(pair) for pair in merges]
    ids = {token: number for number, token in enumerate(dict.fromkeys(vocabulary))}
    result = Tokenizer(
        models.BPE(
            ids, merges, unk_token=END, continuing_subword_prefix="", end_of_word_suffix=WORD_END
        )
    )
    result.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(_regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    result.pre_tokenizer = words
    result.decoder = decoders.ByteLevel()
    result.post_processor = processors.RobertaProcessing(
        (END, ids[END]), (START, ids[START]), trim_offsets=False, add_prefix_space=False
    )
    result.add_special_tokens([START, END])
    folder.mkdir(parents=True, exist_ok=True)
    result.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS}
    settings |= {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return CLIPTokenizer.from_pretrained(folder)


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def build_parts(tokenizer: CLIPTokenizer) -> Parts:
    """Freshly initialised modules (torch's random state decides), about 8 M parameters."""

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=3 * width,
            projection_dim=width,
            num_hidden_layers=3,
            num_attention_heads=width // 32,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    small, large = 64, 96
    unet = UNet2DConditionModel(
        sample_size=SIZE // 8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 80, 112),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(2, 2, 4),  # the number of heads, as in SDXL's own config
        use_linear_projection=True,
        cross_attention_dim=small + large,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_WIDTH,
        projection_class_embeddings_input_dim=6 * TIME_WIDTH + large,
        norm_num_groups=16,
    )
    return Parts(
        tokenizer, CLIPTextModel(config(small)), CLIPTextModelWithProjection(config(large)), unet
    )


def build_scheduler() -> EulerDiscreteScheduler:
    """SDXL's noise schedule, down to zero signal at the last step, with v-prediction."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def encode_prompts(parts: Parts, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What SDXL's UNet is given for prompts.

    Args:
        ids: int64 (B, 77), the same for both encoders.

    Returns:
        The last but one hidden states of both, joined: (B, 77, 160); and the second encoder's
        projection of the end token: (B, 96).
    """
    first = parts.text_encoder(ids, output_hidden_states=True)
    second = parts.text_encoder_2(ids, output_hidden_states=True)
    joined = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
    return joined, second.text_embeds


def pipeline(parts: Parts, vae: AutoencoderKL) -> StableDiffusionXLPipeline:
    """The parts as the pipeline that the worker loads."""
    result = StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=parts.text_encoder,
        text_encoder_2=parts.text_encoder_2,
        tokenizer=parts.tokenizer,
        tokenizer_2=parts.tokenizer,
        unet=parts.unet,
        scheduler=build_scheduler(),
        add_watermarker=False,
    )
    result.set_progress_bar_config(disable=True)
    return result


def load_vae(state: dict[str, torch.Tensor], scaling_factor: float) -> AutoencoderKL:
    """The trained autoencoder; latents x `scaling_factor` have a standard deviation of one."""
    from demo_model.training.train_vae import build

    vae = build()
    vae.load_state_dict(state)
    vae.register_to_config(scaling_factor=scaling_factor)
    return vae.eval().requires_grad_(False)


def save(parts: Parts, vae: AutoencoderKL) -> None:
    """Write the whole folder in fp16 safetensors, with the limits that the worker reads."""
    pipe = pipeline(parts, vae).to(dtype=torch.float16)
    pipe.save_pretrained(MODEL, safe_serialization=True)
    (MODEL / "limits.json").write_text(json.dumps(LIMITS) + "\n")
