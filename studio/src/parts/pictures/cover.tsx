// What a LoRA or an avatar looks like: a picture of one's own chosen for it, else its initials.

import { pictureUrl } from '../../server/api';
import type { Lora } from '../../server/types';

export function Cover({ url, name }: { url: string | null | undefined; name: string }) {
  return (
    <span class="cover" aria-hidden="true">
      {url ? (
        <img src={pictureUrl(url)} alt="" loading="lazy" decoding="async" draggable={false} />
      ) : (
        <span>{name.trim().slice(0, 2).toUpperCase()}</span>
      )}
    </span>
  );
}

export const LoraCover = ({ lora }: { lora: Lora }) => <Cover url={lora.cover_url} name={lora.name} />;
