"""Encoders, language model, generation."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "encoders": ("FeatureCache FourierPointEncoder ImageEncoder MICHELANGELO_CONFIG MICHELANGELO_WEIGHTS "
              "MichelangeloPointEncoder Projector build_image_encoder build_point_encoder build_projector "
              "farthest_points fourier_features insert_features seeded"),
    "attention": ("ATTENTION MAX_LOGITS_PER_CHUNK SHORT VARLEN VarlenBatch block_causal_mask chunk_size "
              "chunked_cross_entropy flash_reason packed_attention pad_input register_attention supports_varlen "
              "target_positions unpad_input varlen_kwargs"),
    "language_model": ("TINY_LLM WeightsError add_lora autocast base_model build_llm check_layers grow_vocabulary "
              "init_new_token_embeddings llm_of_folder load_llm ordinal_embeddings read_weight_tensors "
              "without_progress_bars"),
    "token_layers": ("TokenLayers"),
    "model": ("attends_by_sample"),
    "generation": ("DecodingSession sample_next_token"),
    "weights": ("CADMLLMModel MODULES adapter_state fingerprint llm_state saved_modules small_files"),
    "decoding": ("DecodingRow GrammarLogitsProcessor KernelGuidedDecoding begin check_operation_effect fit_image "
              "fit_points"),
    "given_weights": ("SMALL SMALL_FOLDER Weights download find_weights halve read_manifest_names"),
})
