// How far beyond a picture's edges is drawn, seen as the picture in its frame.

import { SIDES, type Side, type Source } from '../../drafting/source';
import { t } from '../../i18n';
import { NumberInput } from '../composer/numberInput';
import { Button, Field } from '../ui';

const BORDER_MAX = 2048;
const STEP = 8;
const SHAPES: [name: string, ratio: number][] = [
  ['1:1', 1],
  ['16:9', 16 / 9],
  ['9:16', 9 / 16],
];

interface Props {
  source: Source;
  url: string | null;
  error?: string | undefined;
  onChange: (frame: Record<Side, number>) => void;
}

const rounded = (px: number): number => Math.min(BORDER_MAX, Math.max(0, Math.round(px / STEP) * STEP));

/** Borders that bring a picture to `ratio`, the same on both sides. */
function frameTo(ratio: number, { image }: Source): Record<Side, number> {
  const [width, height] = [image.width, image.height];
  const across = Math.max(0, height * ratio - width) / 2;
  const down = Math.max(0, width / ratio - height) / 2;
  return { left: rounded(across), right: rounded(across), top: rounded(down), bottom: rounded(down) };
}

export function FrameFields({ source, url, error, onChange }: Props) {
  const { frame, image } = source;
  const [width, height] = [image.width + frame.left + frame.right, image.height + frame.top + frame.bottom];
  const part = (px: number, of: number) => `${(100 * px) / (of || 1)}%`;
  return (
    <div class="stack">
      <div class="frame-preview" style={{ aspectRatio: `${width || 1} / ${height || 1}` }} aria-hidden="true">
        {url && (
          <img
            src={url}
            alt=""
            style={{
              left: part(frame.left, width),
              top: part(frame.top, height),
              width: part(image.width, width),
              height: part(image.height, height),
            }}
          />
        )}
      </div>
      <div class="row">
        {SHAPES.map(([name, ratio]) => (
          <Button key={name} kind="quiet" disabled={!image.width} onClick={() => onChange(frameTo(ratio, source))}>
            {name}
          </Button>
        ))}
      </div>
      <div class="frame-sides">
        {SIDES.map((side) => (
          <Field key={side} label={t(`source.side.${side}`)} error={side === 'left' ? error : undefined}>
            {(attributes) => (
              <NumberInput
                {...attributes}
                least={0}
                most={BORDER_MAX}
                stepBy={STEP}
                value={frame[side]}
                onChange={(px) => onChange({ ...frame, [side]: Math.min(BORDER_MAX, Math.max(0, Math.round(px ?? 0))) })}
              />
            )}
          </Field>
        ))}
      </div>
    </div>
  );
}
