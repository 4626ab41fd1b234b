#version 330 core
in vec2 uv;
in float alpha;

uniform sampler2D base_texture;
uniform float opaque_from;

void main() {
  if (alpha * texture(base_texture, uv).a < opaque_from) discard;
}
