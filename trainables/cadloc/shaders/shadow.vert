#version 330 core
layout(location = 0) in vec3 position;
layout(location = 2) in vec2 texture_coordinate;
layout(location = 3) in vec4 colour;

uniform mat4 clip_from_model;

out vec2 uv;
out float alpha;

void main() {
  uv = texture_coordinate;
  alpha = colour.a;
  gl_Position = clip_from_model * vec4(position, 1.0);
}
