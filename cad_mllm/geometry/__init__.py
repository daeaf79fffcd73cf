"""Solids, meshes, points and pictures of a history; shapes from outside."""
# Made by tools/make_faces.py from the modules' public names.
from cad_mllm.utils.lazy import hand_on

__getattr__, __dir__, __all__ = hand_on(__name__, {
    "mesh": ("GeometryError surface_distance"),
    "mesh_readers": ("Element LONGEST_METRES MESH_SUFFIXES MOST_BYTES MOST_HEADER MOST_UNPACKED UNITS cut_polygon guess_unit "
              "ply_elements ply_header read_mesh read_surface triangles_of weld"),
    "clouds": ("CLOUD_FILES Cloud FAR MOST_CLOUD_BYTES MOST_POINTS NORMAL_NAMES POINT_NAMES are_normals best_in_one_body "
              "cloud_of far_words gaps in_metres is_connected mean_gap named_columns read_cloud split_columns "
              "without_strays"),
    "render": ("VIEWS camera_frame expand_ranges fit_to_frame view_direction zbuffer"),
    "drawings": ("Drawing"),
    "mesh_files": ("Mesh"),
    "plan": ("TINY make_plan plan_region"),
    "manifold": ("cross_section face_origins manifold_mesh manifold_step manifold_steps manifold_tools region_drawing "
              "region_neighbors sample_loop traced_mesh without_slivers"),
    "occ_import": ("has_odd_name load_occ"),
    "occ": ("occ_area occ_box occ_build occ_children occ_drawing occ_mesh occ_pushed occ_single occ_valid occ_volume"),
    "solid": ("Solid build_counted build_solid film_frames film_strip"),
    "brep": ("MOST_BREP brep_text built_brep grown_brep read_brep"),
    "workers": ("MOST_CALLS WorkerError isolated map_isolated"),
    "engines": ("ENGINES EngineError LocalEngine RayEngine get_engine"),
    "shapes": ("facet_angle read_shape read_step"),
    "fitting": ("Noise Outline Piece cheapest_cuts common_values fit_outline fit_pieces flatten join_pieces share_values "
              "square_lines walk"),
    "surface_clouds": ("SurfaceCloud read_surface_cloud"),
    "sections": ("Chain Sections cross_sections faces_in_noise find_levels gather_supports goes_around look_up slab_of "
              "trace_chains"),
    "sides": ("turn_outward vote_filled"),
    "slabs": ("Prism find_prisms noise_of prism_shares same_outline slab_programs write_program"),
    "mixtures": ("Explained Numbers Patches explain numbers_of patches_of"),
    "cells": ("box_prisms filled_cells likely_programs planes_across turned_prisms"),
    "viewer": ("View3D history3d view3d"),
})
