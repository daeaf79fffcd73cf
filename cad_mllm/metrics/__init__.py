"""Every metric of the field, failures counted."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "distances": ("as_array as_cloud chamfer chamfer_cad_mllm chamfer_deepcad corners_of draw_chamfer fscore nearest "
              "normal_consistency precision_recall"),
    "mesh_repair": ("Repaired as_mesh_arrays edge_ends repair same_triangles split_non_manifold"),
    "intersections": ("cutting_faces det2 self_intersections"),
    "mesh_topology": ("draw_topology relative_segment_error segment_error topology"),
    "volumes": ("align_box align_inertia as_manifold iou iou_from_points manifold_of overlap"),
    "sets": ("cov_mmd_jsd jensen_shannon pairwise_chamfer"),
    "sequences": ("COMMANDS PARAMETERS command_accuracy curve_f1 curve_matches deepcad_commands draw_commands entity_counts "
              "f1_score parameter_accuracy score_programs"),
    "summary": ("Summary"),
    "solids": ("score_clouds score_meshes score_solids"),
    "scored_files": ("CLOUDS MESHES Part STEPS SUFFIXES ScoreError read_part"),
    "scoring": ("ANOTHER_SIZE LABELS Score WORST conventions pair_folders pick score score_parts"),
})
