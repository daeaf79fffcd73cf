"""Histories to and from other programs."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "script_values": ("BINARY CONSTANTS FUNCTIONS MAX_SCRIPT ScriptError UNITS Values dotted_name parse_script power shown"),
    "drawing": ("CURVE_TOLERANCE PLANES arcs_along center_arc closed_loops ellipse_arcs frame_of holds line_curve "
              "named_plane nested_profiles profiles_of_faces spline_arcs three_point_arc"),
    "build123d_sketch": ("Arguments LINE_READERS LineReader METRES_IN MODES OPERATION_OF SketchReader aligned only_context placed "
              "read_plane"),
    "build123d_read": ("GALLERY_SIGN PartReader part_blocks read_build123d unit_of_script"),
    "constraints": ("CENTER Constrained Constraint Curve EDGE END Independence LEAST MANY MILLIMETRES MOST NEAR ORIGIN START "
              "SketchConstraints X_AXIS Y_AXIS add_common add_dimensions add_directions add_distance add_joints "
              "constrain curves_of"),
    "bodies": ("BodyPlan Feature MANY_FEATURES MAX_BODIES SOURCES added_words contours_touch features_of plan_bodies "
              "plan_more sketch_groups touches"),
    "freecad_view": ("ISOMETRIC SECONDS StoredShape camera_settings gui_xml history_of operations_of shape_of_whole "
              "shape_step_by_step view_provider"),
    "freecad_write": ("BOOLEANS BOOLEAN_NAMES CONSTRAINT_CODES Document EXTENSION EXTENSIONS NOTHING ORIGIN_AXES ORIGIN_PLANES "
              "PartWriter TWO_LENGTHS add_body add_features add_origin add_part add_shape add_sketch attachment "
              "attributes boolean choice element feature_loops freecad_document link links number placement "
              "plan_freecad quaternion sketch_properties span_properties string write_freecad"),
    "gallery": ("ARC CIRCLE END_OF_DESIGN EXTRUDE LENGTHS LINE LOOP MINIMAL_OPERATIONS SKETCH_STEPS STEPS UNIT_VECTORS "
              "VECTOR_EXTENTS VECTOR_OPERATIONS is_gallery is_minimal plane_from_angles read_gallery read_minimal "
              "read_vector_file read_vectors"),
    "freecad_patterns": ("MAX_COPIES Motion mirrored_loop moved_sketch reflection ring_of rotation row_of translation"),
    "freecad_objects": ("Item MAX_XML PER_MILLIMETRE document_bytes document_xml finite is_construction placed_frame read_curve "
              "read_items read_sketch rotation_of"),
    "freecad_read": ("COMMONS DRESSINGS DocumentReader FUSIONS KNOWN ORIGIN_DIRECTIONS PATTERNS Push SKETCH_AXES THROUGH_ALL "
              "feature_span operation_number pattern_line pattern_motions program_of read_freecad results_of"),
    "freecad_append": ("MAX_ARCHIVE Span TAG TextEditor append_features continue_freecad element_spans"),
    "script_parts": ("Names ScriptFeature Shape comment scaled_feature script_features shape_of shown_number"),
    "build123d_write": ("B3D_MODES INDENT b3d_feature one_tool point_text write_build123d"),
    "cadquery_write": ("CQ_METHODS cq_operation write_cadquery"),
    "openscad_write": ("SCAD_BOOLEANS SCAD_HEAD write_openscad"),
    "cadquery_read": ("Chain ChainReader LenientReader ShapeReader Solid SolidReader define_name read_cadquery "
              "script_statements solids_program"),
    "script_append": ("DIMENSIONS SOURCE_LINE append_build123d append_cadquery continue_script fresh_prefix insert_lines "
              "is_build123d"),
    "featurescript_write": ("FS_HEAD FS_INDENT write_featurescript"),
    "fusion_write": ("FUSION_HEAD FUSION_OPERATIONS write_fusion"),
    "histories": ("FOREIGN READABLE SCRIPTS WRITABLE is_continued is_writable json_of_data_set read_history recognise "
              "write_history"),
    "data_sets": ("DataSet LEFT_OUT MOST_SPLIT MOST_TABLE convert_data_set find_data_set"),
    "freecad_macro": ("FREECAD_COMMANDS MACRO ask_macro_folder install_macro macro_text usual_macro_folder"),
})
