#version 330 core
// Variants: OPAQUE_FROM where a surface has holes, NORMALS where it has normals of its own, SHADOWS for such a sun.
in vec3 relative;
#ifdef NORMALS
in vec3 vertex_normal;
#endif
in vec2 uv;
in vec4 tint;

uniform sampler2D base_texture;
uniform vec3 sun_direction;  // towards the sun, length 1
uniform vec3 sun_colour;
uniform vec3 ambient_colour;
uniform float ground_bounce;
#ifdef SHADOWS
uniform sampler2DShadow shadow_map;
uniform mat4 shadow_from_eye;   // surface point relative to the camera -> shadow map, [0, 1]^3
uniform float shadow_texel_m;
#endif

layout(location = 0) out vec4 colour_out;
layout(location = 1) out vec4 relative_out;  // w = 1 marks a hit

#ifdef SHADOWS
float sunlit(vec3 facing) {
  // Stepping off the surface by a texel or two keeps it from shadowing itself.
  vec3 map = (shadow_from_eye * vec4(relative + 1.5 * shadow_texel_m * facing, 1.0)).xyz;
  vec2 step = 0.5 / vec2(textureSize(shadow_map, 0));
  return 0.25 * (texture(shadow_map, map + vec3(step.x, step.y, 0.0)) + texture(shadow_map, map + vec3(-step.x, step.y, 0.0)) +
                 texture(shadow_map, map + vec3(step.x, -step.y, 0.0)) + texture(shadow_map, map - vec3(step.x, step.y, 0.0)));
}
#endif

void main() {
  // The plane's normal from the plane itself: inverted, mirrored and one-sided faces all look towards the camera.
  vec3 facing = normalize(cross(dFdx(relative), dFdy(relative)));
  if (dot(facing, relative) > 0.0) facing = -facing;
  vec4 albedo = tint * texture(base_texture, uv);
#ifdef OPAQUE_FROM
  if (albedo.a < OPAQUE_FROM) discard;
#endif
  vec3 n = facing;
#ifdef NORMALS
  if (dot(vertex_normal, vertex_normal) > 0.25) {
    n = normalize(vertex_normal);
    if (dot(n, facing) < 0.0) n = -n;
  }
#endif
  vec3 light = ambient_colour * (1.0 + ground_bounce * n.z);
  float sun = max(dot(n, sun_direction), 0.0);
#ifdef SHADOWS
  if (sun > 0.0) light += sun_colour * sun * sunlit(dot(facing, sun_direction) > 0.0 ? facing : -facing);
#else
  light += sun_colour * sun;
#endif
  colour_out = vec4(min(albedo.rgb * light, 1.0), 1.0);
  relative_out = vec4(relative, 1.0);
}
