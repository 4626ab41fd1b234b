#version 330 core
layout(location = 0) in vec3 position;
#ifdef OPAQUE_FROM
layout(location = 2) in vec2 texture_coordinate;
layout(location = 3) in vec4 colour;
#endif

uniform mat4 clip_from_model;

#ifdef OPAQUE_FROM
out vec2 uv;
out float alpha;
#endif

void main() {
#ifdef OPAQUE_FROM
  uv = texture_coordinate;
  alpha = colour.a;
#endif
  gl_Position = clip_from_model * vec4(position, 1.0);
}
