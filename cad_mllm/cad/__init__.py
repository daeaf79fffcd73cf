"""Parametric histories and the token language."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "curves": ("Arc CADFormatError Circle Contour Frame Line Loop arc_circle as_array as_complex complex_circle cross "
              "dot get_field parse_curve parse_number parse_vector segment_area unknown_fields vector_json"),
    "program": ("CADProgram EXTENTS Extrude MAX_BYTES OPERATIONS Profile Sketch arc_points circle contour_loop "
              "parse_entity polygon polyline rectangle truncation_counts"),
    "grid": ("EXPONENTS Grid MANTISSAS NUM_LEVELS"),
    "vocab": ("ADDED ARC_TOKENS AXES CARRY COMMANDS EXPONENT_TOKENS EXTENT_TOKENS FINE NUMBERS NUM_CARRY OPS TOKENS "
              "TOKEN_IDS UNIT_TOKENS VERSION fine_number_tokens fine_numbers number_tokens tokens_of_number vocabulary"),
    "records": ("ExtrudeOp GridLoop RecordEncoder SketchOp axes_rotation canonical_loop contours_of_profile fit_grid "
              "name_axes"),
    "rounding": ("RoundedLoops TOLERANCE changed_number crosses_at_a_corner fine_contour fine_contours_of fine_edges "
              "fine_loop measured_edge rounded whole_unit whole_units"),
    "kept_dimensions": ("stable_profile"),
    "fine_records": ("encoder_of to_records"),
    "grammar": ("GrammarError NUMBER_BANKS State advance allowed choices min_length read_state"),
    "tokens": ("decode decode_rest encode encode_partial encode_split from_text header_tokens read_grid render_text "
              "text_to_tokens to_text"),
    "recovery": ("recover_program"),
    "codecs": ("JsonCodec TextCodec TokenCodec get_codec trim"),
})
