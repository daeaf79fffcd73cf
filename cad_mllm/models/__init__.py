"""Encoders, language model, generation."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "encoders": ("FeatureCache FourierPointEncoder ImageEncoder MICHELANGELO_CONFIG MICHELANGELO_WEIGHTS "
              "MichelangeloPointEncoder Projector build_image_encoder build_point_encoder build_projector "
              "farthest_points fourier_features insert_features seeded"),
    "attention": ("ATTENTION LOGITS_AT_ONCE Ragged SHORT VARLEN block_causal_mask by_sample chunk_size flash_reason flatten "
              "packed_attention predicted ragged_options register_attention summed_loss unflatten"),
    "language_model": ("TINY_LLM WeightsError add_lora autocast base_model build_llm check_layers grow_vocabulary initial_rows "
              "llm_of_folder load_llm read_weight_tensors smooth_rows without_progress_bars"),
    "token_layers": ("TokenLayers"),
    "model": ("attends_by_sample"),
    "generation": ("Writer choose"),
    "weights": ("CADMLLMModel MODULES adapter_state fingerprint llm_state saved_modules small_files"),
    "decoding": ("GrammarLogitsProcessor OperationCheck Row begin fit_image fit_points judge"),
    "given_weights": ("SMALL SMALL_FOLDER Weights download find_weights halve read_manifest_names"),
})
