#version 330 core
#ifdef OPAQUE_FROM
in vec2 uv;
in float alpha;

uniform sampler2D base_texture;
#endif

void main() {
#ifdef OPAQUE_FROM
  if (alpha * texture(base_texture, uv).a < OPAQUE_FROM) discard;
#endif
}
